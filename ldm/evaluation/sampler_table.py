"""Samplers against each other on one model: quality at equal steps and at equal evaluations of the network.

From the same noise and captions; points that are measured are kept, so that a table can be stopped, and made larger.
"""

from pathlib import Path
from typing import Any

from ldm.asked import check_folder, named_models
from ldm.config import compose, groups
from ldm.config.keys import AT_MOST
from ldm.config.numbers import check_guidance, check_least
from ldm.device import choose
from ldm.drawer import Drawer
from ldm.errors import UserError
from ldm.evaluation.evaluate import curve_keys, evaluate
from ldm.evaluation.table import write_csv
from ldm.evaluation.yardsticks import Yardsticks, yardsticks_of
from ldm.holding import held
from ldm.loading import check_draws, load_drawer
from ldm.measuring import FEWEST
from ldm.report.plots import loss_curves
from ldm.sampling import levels_asked

Row = dict[str, Any]


def sampler_table(tree: dict[str, Any]) -> tuple[list[Row], Path]:
    """Measure the model of `tree` (conf/sampler_table.yaml) with every sampler and number of steps, others beside it.

    Returns a row for each pair, the others' under their names for the sampler, and the folder with ``table.csv`` and
    ``quality_over_evaluations.png``.
    """
    samplers, beside = _samplers(tree["samplers"]), _beside(tree["models"])
    _check(tree)
    path = Path(tree["model"])
    folder = Path(tree["out"]) if tree["out"] else (path if path.is_dir() else path.parent) / f"samplers-{path.stem}"
    counts = sorted(tree["steps"])
    device = choose(tree["device"])
    with held(folder, "evaluating into"):
        by = yardsticks_of(tree, device)  # what samples are compared with is looked at once for all cells
        model = _hollow(tree)
        rows = [
            _row(tree, model, folder, name, count, [f"sampler={name}"], by) for name in samplers for count in counts
        ]
        for name, run in beside.items():
            other = {**tree, "model": run}
            model = _hollow(other)
            rows += [_row(other, model, folder, name, count, [], by) for count in counts]
        return _written(folder, [*samplers, *beside], rows)


def _samplers(given: list[str] | None) -> list[str]:
    """Those asked for, or all. Raises UserError for none, one that there is not, or one that is there twice."""
    known = groups()["sampler"]
    samplers = list(known) if given is None else given
    for name in samplers:
        if name not in known:
            raise UserError(f"samplers: no sampler {name}; there are {', '.join(known)}")
    if not samplers or len(set(samplers)) < len(samplers):
        raise UserError(f"samplers={samplers}: a list of different ones of {', '.join(known)}; null is all of them")
    return samplers


def _check(tree: dict[str, Any]) -> None:
    """Raises UserError for keys that no point could be measured with, and for what draws no images."""
    steps = tree["steps"]
    if not steps or len(set(steps)) < len(steps) or not all(1 <= count <= AT_MOST["num_steps"] for count in steps):
        raise UserError(f"steps={steps}: a list of different numbers of steps, from 1 to {AT_MOST['num_steps']}")
    for key in ("metric", "alignment"):
        if tree[key] is None:
            raise UserError(f"{key}=null: what is drawn is measured by one; leave it out")
    check_least(tree, {"num_samples": FEWEST, "batch_size": 1, "seed": 0})
    check_guidance(tree)
    if tree["out"]:
        check_folder("out", tree["out"])
    if isinstance(named_models(tree["model"]), list):
        raise UserError(f"model={tree['model']}: is one; models= has others that stand beside it")
    _check_draws("model", tree["model"])


def _check_draws(key: str, path: str) -> None:
    try:
        check_draws(path)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(f"{key}=") else f"{key}={error}") from None


def _beside(given: str | list[str] | None) -> dict[str, str]:
    """The runs to stand beside the model, by name. Raises UserError for what is no run, or has a name that is taken."""
    found: dict[str, str] = {}
    for path in [given] if isinstance(given, str) else given or []:
        name = Path(path).resolve().name
        if not (Path(path) / "config.yaml").exists():
            raise UserError(f"models={path}: has no config.yaml, which says how it is drawn; name a run's folder")
        if name in found or name in groups()["sampler"]:
            raise UserError(f"models={path}: another row is called {name}; rename its folder")
        _check_draws("models", path)
        found[name] = path
    return found


def _written(folder: Path, samplers: list[str], rows: list[Row]) -> tuple[list[Row], Path]:
    write_csv(folder / "table.csv", rows)
    quality, _ = curve_keys(rows[0])
    curves = {}
    for name in samplers:
        own = [row for row in rows if row["sampler"] == name]
        curves[name] = ([row["evaluations"] for row in own], [row[quality] for row in own])
    picture = folder / "quality_over_evaluations.png"
    loss_curves(picture, curves, smoothing=0.0, x_label="evaluations of the denoiser", y_label=quality)
    return rows, folder


def _hollow(tree: dict[str, Any]) -> Drawer:
    """The model of `tree` without its weights: to ask it how it is sampled."""
    return load_drawer(tree["model"], None, tree["ema"]).hollow()


def _row(
    tree: dict[str, Any], drawer: Drawer, folder: Path, name: str, num_steps: int, chosen: list[str],
    yardsticks: Yardsticks,
) -> Row:  # fmt: skip
    """Quality of what is called `name` in `num_steps`, measured or as it was kept; `chosen` are the words for its own
    sampler, or none for that of the run.
    """
    print(f"[{name}, {num_steps} steps]", flush=True)
    keys = ("model", "ema", "num_samples", "seed", "batch_size", "device")
    words = [f"{key}={tree[key]}" for key in keys] + [f"guidance.scale=[{tree['scale']}]", f"num_steps={num_steps}"]
    point = compose("evaluate", [*words, *chosen, f"out={folder / f'{name}_{num_steps}'}"])
    rows, _ = evaluate({**point, "metric": tree["metric"], "alignment": tree["alignment"]}, yardsticks)
    measured = {key: value for key, value in rows[0].items() if key != "scale"}
    return {"sampler": name, "steps": num_steps, "evaluations": evaluations(drawer, point), **measured}


def evaluations(drawer: Drawer, tree: dict[str, Any]) -> int:
    """How often the sampler of `tree` (conf/evaluate.yaml), or a drawer's own, asks the denoiser on its schedule."""
    asked = {key: tree[key] for key in ("sampler", "sigmas", "num_steps")}
    sampling = drawer.sampling({**asked, "guidance": {"scale": 1.0}})
    return len(levels_asked(sampling.sampler, sampling.sigmas))
