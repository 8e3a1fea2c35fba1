"""Whether experts beat their parents inside their own intervals: held-out losses over ln(sigma), as a job."""

from pathlib import Path
from typing import Any

from ldm.config.numbers import check_least
from ldm.device import choose
from ldm.errors import UserError
from ldm.evaluation.interval_loss import held_out
from ldm.evaluation.logged import log
from ldm.evaluation.loss_over_sigma import LEVELS, WHOLE, draw, loses, measure, over_sigma
from ldm.evaluation.table import write_csv
from ldm.lineage import begun_from, read_lineage
from ldm.model import Model, load_model

Row = dict[str, Any]


def expert_loss(tree: dict[str, Any]) -> tuple[list[Row], Path]:
    """The rows of losses.csv, one for each model of `tree` (conf/expert_loss.yaml), and the folder with all files.

    A row has `model`, `parent`, the ends of its noise, and inside of it `parent_loss`, `loss`, `gain` and
    `half_interval` (half the 95 % interval over captions); loss_over_sigma.csv has the same by bins of it, and a plot
    for each model. Prints a warning for every bin in which a model loses. Raises UserError for what has no parent,
    before anything is measured.
    """
    device = choose(tree["device"])
    check_least(tree, {"num_samples": 2, "bins": 1})
    paths = [tree["models"]] if isinstance(tree["models"], str) else list(tree["models"])
    if not paths:
        raise UserError("models=[]: at least one")
    pairs = [_pair(Path(path).expanduser(), tree["parent"]) for path in paths]
    names = [child.name for child, _ in pairs]
    if len(set(names)) < len(names):
        raise UserError(f"models={paths}: two are called the same")
    folder = Path(tree["out"]) if tree["out"] else pairs[0][0].weights[0].run / "losses"
    rows, curve = [], []
    for child, parent in pairs:
        data, noise = parent.data, parent.parts["noise"]
        data.setup()
        count = min(tree["num_samples"], data.num_validation)
        seen = held_out(parent, data, tree["seed"], count).to(device)
        measured = measure(child.to(device), parent.to(device), seen, noise, tree["seed"])
        expert = child.parts["expert"]
        intervals = WHOLE if expert is None else expert.intervals(child.parts["noise"])
        about = {"model": child.name, "parent": parent.name}
        ends = {"sigma_lo": intervals[0][0], "sigma_hi": intervals[-1][1]}
        rows.append({**about, **ends, **measured(intervals, 2 * LEVELS)})
        own = over_sigma(measured, noise, intervals, tree["bins"])
        for row in filter(loses, own):
            print(
                f"warning: {child.name} is worse than {parent.name} at sigma {row['sigma']:.4g}, "
                f"{row['parent_loss']:.4g} -> {row['loss']:.4g}"
            )
        draw(folder / f"{child.name}.png", own, child.name)
        curve += [{**about, **row} for row in own]
    write_csv(folder / "losses.csv", rows)
    write_csv(folder / "loss_over_sigma.csv", curve)
    tables = {name: [row for row in curve if row["model"] == name] for name in names}
    log(tree, folder, {"inside": rows, **tables}, {name: folder / f"{name}.png" for name in names})
    return rows, folder


def _pair(path: Path, parent: str | None) -> tuple[Model, Model]:
    """A model and the one that it is held against: `parent`, or its own as it was when it was branched from."""
    child = load_model(path)
    run = child.weights[0].run
    begun = Path(parent).expanduser() if parent else begun_from(read_lineage(run, "none"), run)
    if begun is None:
        raise UserError(f"models: {path} was branched from nothing; parent= names what it is held against")
    other = load_model(begun)
    if not other.data.num_validation:
        raise UserError(f"models: {path}: the data of {other.name} have no held-out images, which losses are of")
    other.first_stage.spec.check(child.first_stage.spec)
    return child, other
