"""Where to cut the noise: what each node has of training and of sampling, what training on gains there, a schedule."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ldm.asked import check_folder
from ldm.build import kind_of
from ldm.compatibility import is_part
from ldm.config import added_words, compose, dump, instantiate, overriding
from ldm.config.numbers import check_least
from ldm.device import choose
from ldm.errors import UserError
from ldm.evaluation.interval_loss import held_out
from ldm.evaluation.logged import log
from ldm.evaluation.loss_over_sigma import LEVELS, WHOLE, draw, loses, measure, over_sigma
from ldm.evaluation.table import write_csv
from ldm.files import write_text
from ldm.launching import Job
from ldm.launching.chain import Chain, Step
from ldm.launching.local import passing_on
from ldm.lineage import branch_point, branched_run
from ldm.loading import load
from ldm.model import Model
from ldm.trees.shares import NodeShare, propose, rows_of, shares, spines, with_gain
from ldm.trees.trainings import is_finished

Tree = dict[str, Any]
Row = dict[str, Any]
NAME = "proposed"  # of the schedule's file
PLACES = ("run", "runs_dir", "branch")  # of the short training


def propose_split(tree: Tree) -> Path | None:
    """Write the tables, the figure and a schedule for `tree` (conf/propose_split.yaml); returns their folder.

    None if the short training was stopped and saved. Raises UserError for keys that cannot be, before anything trains.
    """
    model = Path(tree["model"]).expanduser()
    _check_keys(tree)
    own = model.parent.parent if model.suffix == ".safetensors" else branched_run(str(model))
    folder = Path(tree["out"]) if tree["out"] else own / "split"
    parent = load(model)
    _check_whole("model", model, parent)
    noise, sigmas = parent.parts["noise"], parent.sampling(tree).sigmas
    found = shares(noise, sigmas, spines(tree["levels"]))
    print(f"{model.name}: {len(sigmas) - 1} steps from sigma {sigmas[0]:.4g}", flush=True)
    if tree["continued"] or tree["steps"]:
        if not parent.data.num_validation:
            raise UserError(f"model={model}: its data have no held-out images, by which gains are measured")
        child_run = _continued(tree, model)
        if child_run is None:
            return None
        child = load(child_run)
        _check_whole("continued", child_run, child)
        _check_latents(child_run, parent, child)
        found = _with_gains(tree, parent, child, found, folder)
    proposed = propose(found, tree["least_share"])
    table = [_row(share) for share in found]
    write_csv(folder / "split.csv", table)
    for row in table:
        measured = f", gain {row['gain']:.4g} ± {row['half_interval']:.2g}" if row["gain"] is not None else ""
        print(
            f"({row['level']}, {row['index']}): sigma [{row['sigma_lo']:.6g}, {row['sigma_hi']:.6g}), "
            f"{100 * row['training_share']:.3g} % of the training, {100 * row['sampling_share']:.3g} % of the steps"
            f"{measured}, payoff {row['payoff']:.4g}"
        )
    _draw(folder / "split.png", found, {share.node for share in proposed})
    _write(tree, model, proposed, folder / f"{NAME}.yaml", parent)
    pictures = {name: folder / f"{name}.png" for name in ("split", "loss_over_sigma")}
    log(tree, folder, {"split": table}, pictures)
    return folder


def _check_keys(tree: Tree) -> None:
    choose(tree["device"])
    check_least(tree, {"levels": 1, "num_samples": 2, "bins": 1, "budget": 1, "seed": 0})
    if tree["out"]:
        check_folder("out", tree["out"])
    if not 0 <= tree["least_share"] < 1:
        raise UserError(f"least_share={tree['least_share']}: a share of the steps, from 0 to below 1")
    _check_training(tree)


def _check_training(tree: Tree) -> None:
    """Raises UserError for keys of a short training that would not be read, or that it could not be begun with."""
    said = [key for key in ("steps", "experiment", "overrides") if tree[key] not in (None, "")]
    if tree["continued"] is not None:
        if said:
            raise UserError(f"{said[0]}: is of a short training, in whose place continued= names a run; leave one out")
        if not Path(tree["continued"]).expanduser().exists():
            raise UserError(f"continued={tree['continued']}: no such run")
    elif tree["steps"] is not None:
        check_least(tree, {"steps": 1})
        if tree["experiment"] is None:
            raise UserError("experiment: says what trains the model on for steps=; or name a run, continued=")
        for key in ("logger", "launcher"):
            if tree[key] is None:
                raise UserError(f"{key}=null: the short training needs one; leave it out")
    elif said:
        raise UserError(f"{said[0]}: is of a short training, which steps= asks for; leave it out, or say how many")


def _check_whole(key: str, path: Path, model: Any) -> None:
    """Raises UserError for what is no diffusion model of all of the noise."""
    if not isinstance(model, Model) or is_part(model.parts.tree):
        raise UserError(f"{key}={path}: where to cut is asked of a diffusion model trained on all of the noise")


def _check_latents(run: Path, parent: Model, child: Model) -> None:
    """Raises UserError for a run of other latents, whose losses are not those of the same images under noise."""
    try:
        parent.first_stage.spec.check(child.first_stage.spec)
    except ValueError as error:
        raise UserError(f"continued={run}: was not branched from model=; {error}") from error


def _continued(tree: Tree, model: Path) -> Path | None:
    """The run that was trained on from the model; None if it was stopped."""
    if tree["continued"]:
        return Path(tree["continued"]).expanduser()
    run = branched_run(str(model))
    words = [f"experiment={tree['experiment']}", f"branch={model}", f"run={run.name}-continued"]
    words += [f"runs_dir={run.parent}", f"max_steps={tree['steps']}", f"seed={tree['seed']}", "trainer.precision=auto"]
    words += [f"logger.mode={tree['logger']['mode']}", *added_words(tree["overrides"], "overrides", PLACES)]
    words = overriding(words)
    branch_point(str(model))
    try:  # a mistake is told before a process starts
        composed = compose("config", words)
    except UserError as error:
        raise UserError(f"overrides: {error}" if tree["overrides"] else str(error)) from error
    if kind_of(composed) != "diffusion":
        raise UserError(f"experiment={tree['experiment']}: trains no diffusion model (it is of a {kind_of(composed)})")
    if is_part(composed):
        raise UserError("overrides: the short training is for all of the noise; leave expert out")
    job = Job(f"{run.name}-continued", tuple(words))
    chain = Chain([Step(job)], instantiate(tree["launcher"], {}, "launcher"), 1)
    with passing_on():
        stopped = chain.run()
    if stopped:
        return None
    if chain.failed or not is_finished(run.with_name(job.name)):
        raise UserError(f"{job.name}: failed, its message is above")
    return run.with_name(job.name)


def _with_gains(tree: Tree, parent: Model, child: Any, found: list[NodeShare], folder: Path) -> list[NodeShare]:
    """The shares with the gains of `child`; the losses of both over ln(sigma) are written beside."""
    data, noise, seed = parent.parts["data"], parent.parts["noise"], tree["seed"]
    data.setup()
    device = choose(tree["device"])
    seen = held_out(parent, data, seed, min(tree["num_samples"], data.num_validation)).to(device)
    parent.to(device)
    child.to(device)

    measured = measure(child, parent, seen, noise, seed)
    curve = over_sigma(measured, noise, WHOLE, tree["bins"])
    write_csv(folder / "loss_over_sigma.csv", curve)
    draw(folder / "loss_over_sigma.png", curve, "trained on")
    gains = [measured([share.interval], 2 * LEVELS) for share in found]
    for row in filter(loses, curve):
        print(
            f"warning: at sigma {row['sigma']:.4g} the model that was trained on is worse, {row['parent_loss']:.4g} -> "
            f"{row['loss']:.4g}: more training of the same kind only learns pictures by heart there"
        )
    return [with_gain(share, own["gain"], own["half_interval"]) for share, own in zip(found, gains, strict=True)]


def _row(share: NodeShare) -> Row:
    level, index = share.node
    return {
        "level": level, "index": index, "sigma_lo": share.interval[0], "sigma_hi": share.interval[1],
        "training_share": share.training, "sampling_share": share.sampling, "gain": share.gain,
        "half_interval": share.half, "payoff": share.payoff,
    }  # fmt: skip


def _write(tree: Tree, model: Path, proposed: list[NodeShare], path: Path, parent: Model) -> None:
    """The schedule, if there is one to propose."""
    if not proposed:
        path.unlink(missing_ok=True)
        print("no node pays more than training on over all of the noise; nothing is proposed")
        return
    rows = rows_of(proposed, parent.weights[0].metadata["step"], tree["budget"])
    names = [row["name"] for row in rows[1:]]
    text = dump({"rows": rows, "ensembles": {"base": ["base"], "proposed": names}})
    grown = f"python scripts/grow_tree.py schedule={path} base={model} branch_experiment=..."
    write_text(path, f"# {grown}\n# By scripts/propose_split.py, from the shares and gains in split.csv.\n{text}")
    print(f"proposed: {', '.join(str(share.node) for share in proposed)} and what they leave; {grown}")


def _draw(path: Path, found: list[NodeShare], proposed: set[tuple[int, int]]) -> None:
    """Shares of training and sampling of each node, and its payoff; those proposed are bold."""
    figure = Figure(figsize=(8, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    places = range(len(found))
    left.barh([place + 0.2 for place in places], [share.training for share in found], 0.4, label="training")
    left.barh([place - 0.2 for place in places], [share.sampling for share in found], 0.4, label="sampling steps")
    left.set(xlabel="share", xscale="log")
    left.set_yticks(list(places), [str(share.node) for share in found])
    for tick, share in zip(left.get_yticklabels(), found, strict=True):
        tick.set_fontweight("bold" if share.node in proposed else "normal")
    left.legend()
    right.barh(places, [share.payoff for share in found])
    right.set(xlabel="payoff: sure gain x sampling / training")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})
