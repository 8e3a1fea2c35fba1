"""The evaluation of models as a job: a first stage's reconstructions, or guidance curves of diffusion models.

Curves are resumable point by point, over any number of processes, and written as CSV and PNG.
"""

import logging
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ldm.asked import named_models
from ldm.build import Parts, is_first_stage
from ldm.config import accepts, compose, instantiate, load_tree, meant
from ldm.config.numbers import check_least
from ldm.data.module import ShardData
from ldm.device import choose
from ldm.drawer import Drawer, check_conditions, turns_of
from ldm.errors import UserError
from ldm.evaluation.curves import Curve, Row, curve_keys, write
from ldm.evaluation.first_stage import evaluate_first_stage
from ldm.evaluation.grid import Cell, cells, with_classes
from ldm.evaluation.guidance_curve import LOST, measure
from ldm.evaluation.paired import Paired, check_paired
from ldm.evaluation.points import KEPT, identity_of, keep, others, points_of
from ldm.evaluation.protocol import COUNTS, SAMPLES, Protocol
from ldm.evaluation.replaced_fields import with_fields_of
from ldm.evaluation.samples_file import SamplesFile, samples_file
from ldm.evaluation.stored_reference import UNKNOWN, StoredReference, is_stored, stored
from ldm.evaluation.yardsticks import Yardsticks, yardsticks_of
from ldm.holding import held
from ldm.loading import load_drawer, residencies
from ldm.measuring import FEWEST, alignment_key
from ldm.request import check_guides
from ldm.residency import words_of
from ldm.sampling import Sampling
from ldm.training.distributed import broadcast, process_group, together

__all__ = ["curve_keys", "evaluate"]
SCALES = (1.0, 2.0, 3.0, 5.0, 8.0)  # of guidance, where none are asked for and the run has none of its own
# Keys that a first stage is measured by.
OF_FIRST_STAGE = (
    "model", "ema", "validation", "image_size", "num_samples", "seed", "batch_size", "metric", "device", "out",
    "plugins",
)  # fmt: skip
# Of a model's path: whose conditions, and what samples are compared with.
Sets = dict[str, tuple[ShardData, ShardData | StoredReference]]
log = logging.getLogger(__name__)


def evaluate(tree: dict[str, Any], yardsticks: Yardsticks | None = None) -> tuple[list[Row], Path]:
    """Measure the model of `tree` (conf/evaluate.yaml); returns the rows of its table and the folder with the files.

    A diffusion model gives a row for each guidance scale of each cell of a grid, a first stage one for each metric. No
    rows on ranks but 0; an error of one is raised on all. `yardsticks`, of the kinds that `tree` names, are those of
    the models before; None loads them.
    """
    protocol: Protocol | None = instantiate(tree["protocol"], Parts(tree), "protocol") if tree["protocol"] else None
    said, tree = _said(tree), _settled(tree, protocol)
    models = named_models(tree["model"])
    paths = [Path(model) for model in (models if isinstance(models, list) else [models])]
    for path in paths:
        config = (path.parent.parent if path.suffix == ".safetensors" else path) / "config.yaml"
        if config.exists() and is_first_stage(load_tree(config)):
            return _first_stage(tree, protocol, said)
    check_least(tree, {"seed": 0, "resamples": 0})
    if tree["npz"] and Path(tree["npz"]).suffix != ".npz":
        raise UserError(f"npz={tree['npz']}: samples are written as FILE.npz")
    asked = _asked_scales(tree["guidance"].get("scale"))
    if tree["image_size"] is not None:
        raise UserError(
            f"image_size={tree['image_size']}: is of a first stage's images; a diffusion model draws at the size it was"
            " trained at"
        )
    if tree["validation"] is not None:
        raise UserError(
            f"validation={tree['validation']}: is of a first stage's images; samples of a diffusion model are compared "
            "with reference="
        )
    check_guides(tree, set(said) - {"alignment"})  # which measures too
    asked_cells = list(cells(tree))
    device = choose(tree["device"])
    with process_group(device) as (rank, world_size), ExitStack() as stack:
        if tree["num_samples"] < (fewest := max(FEWEST, world_size)):
            raise UserError(
                f"num_samples={tree['num_samples']}: at least {fewest}; precision asks for the third neighbour, and "
                "each process for a sample"
            )
        with together():
            folder = _folder(tree, paths)
            drawers = _drawers(tree, asked_cells, device, rank)
            if "turns" in said and not any(model.residency for model in drawers.values()):
                raise UserError(f"turns={tree['turns']}: is of experts that come and go; residency=one makes them")
            if folder is None:
                name = next(iter(drawers.values())).name
                folder = (paths[0] if paths[0].is_dir() else paths[0].parent) / f"evaluation-{name}"
            if rank == 0:
                stack.enter_context(held(folder, "evaluating into"))
            curves = [
                _curve(drawers[cell.tree["model"], cell.tree["ema"]], cell, folder, asked, rank, protocol)
                for cell in asked_cells
            ]
            points = [(curve, f"{scale:g}") for curve in curves for scale in curve.scales]
            samples = samples_file(tree["npz"], [f"{curve.identity} {scale}" for curve, scale in points], rank)
            if samples and not samples.there:
                curves[0].done.pop(points[0][1], None)
            missing = [curve for curve in curves if curve.missing]
            if missing:
                sets = _sets(missing, protocol)
                by = yardsticks or yardsticks_of(tree, device)
                subsets = protocol.subsets if protocol else {}
                paired = Paired(tree["paired"], subsets, device) if tree["paired"] or subsets else None
        for curve, done in zip(curves, broadcast([curve.done for curve in curves]), strict=True):
            curve.done = done
        missing = [curve for curve in curves if curve.missing]
        if missing:
            _measure(tree, missing, sets, by, paired, samples, rank, world_size)
        return ([], folder) if rank else (write(folder, curves), folder)


def _settled(tree: dict[str, Any], protocol: Protocol | None) -> dict[str, Any]:
    """`tree` with what the protocol says, or else the usual, where it asks for nothing."""
    if tree["data"] is not None:
        tree = {**tree, "data": meant("reference", tree["data"])}  # to Hydra it is text: the name of a group too
    tree = protocol.asked(tree) if protocol else tree
    usual = {"num_samples": SAMPLES, "paired": []}
    return {**tree, **{key: value for key, value in usual.items() if tree[key] is None}}


def _said(tree: dict[str, Any]) -> list[str]:
    """The keys of `tree` that are not as conf/evaluate.yaml has them."""
    usual = compose("evaluate", ["model=_"])
    return [key for key, value in tree.items() if value != usual.get(key)]


def _first_stage(tree: dict[str, Any], protocol: Protocol | None, said: list[str]) -> tuple[list[Row], Path]:
    if tree["npz"]:
        raise UserError(f"npz={tree['npz']}: has samples of a diffusion model, and {tree['model']} is a first stage")
    if protocol:
        raise UserError(f"protocol={protocol.name}: is for diffusion models, and {tree['model']} is a first stage")
    if isinstance(named_models(tree["model"]), list):
        raise UserError("model: several are diffusion models to compare; a first stage is measured alone")
    unread = [key for key in said if key not in OF_FIRST_STAGE]
    if unread:
        raise UserError(f"{unread[0]}: is of diffusion models, and {tree['model']} is a first stage; leave it out")
    return evaluate_first_stage(tree)


def _folder(tree: dict[str, Any], paths: list[Path]) -> Path | None:
    """Where it is written if that is said; None: with the one model."""
    if tree["out"] is None and len(paths) > 1:
        raise UserError("out: say where to write; several models have no folder of their own")
    return Path(tree["out"]) if tree["out"] else None


def _drawers(tree: dict[str, Any], asked: list[Cell], device: Any, rank: int) -> dict[tuple[str, str], Drawer]:
    """What the cells draw with, by path and average; says where the average that is asked for does not exist."""
    models: dict[tuple[str, str], Drawer] = {}
    own = residencies(list(dict.fromkeys(cell.tree["model"] for cell in asked)), tree["residency"])
    for path, ema in dict.fromkeys((cell.tree["model"], cell.tree["ema"]) for cell in asked):
        model = load_drawer(path, tree["first_stage"], ema, own[path])
        model = model.to(device).tuned(tree["compile"], tree["precision"])
        plain = [str(weights.path) for weights in model.weights if weights.path.name.endswith(".raw.safetensors")]
        if plain and ema == "ema" and str(path) not in plain and rank == 0:
            log.warning("%s keeps no average of its weights: ema=ema measures the raw ones, as ema=raw does", path)
        models[path, ema] = model
    return models


def _curve(
    model: Drawer, cell: Cell, folder: Path, asked: list[float], rank: int, protocol: Protocol | None
) -> Curve:  # fmt: skip
    """A curve with the points that rank 0 finds on disk; other ranks, which may not see it, are told which are done.

    Raises ValueError for a scale that is not measured yet and that the model cannot be guided at, and for a protocol of
    another kind of model.
    """
    sampling, identity = _sampling(cell.tree, model), identity_of(model, cell.tree)
    own = folder / cell.name
    if protocol:
        protocol.check(model, sampling)
    scales = asked or _usual_scales(cell.tree, model, sampling)
    if not asked and rank == 0:
        print(f"{model.name}: guidance.scale=[{','.join(f'{scale:g}' for scale in scales)}]", flush=True)
    done = points_of(own, identity) if rank == 0 else {}
    curve = Curve(model, cell.tree, cell.columns, own, sampling, scales, identity, done, protocol)
    for scale in curve.missing:
        model.left_out(sampling.with_scale(scale))
    if rank == 0 and not curve.done:
        _tell_of_others(curve)
    return curve


def _tell_of_others(curve: Curve) -> None:
    """Say it where points are kept that are not of this curve."""
    kept, count = others(curve.folder)
    if count:
        bare = kept == identity_of(curve.model, {**curve.tree, "resamples": 0})
        why = "have no intervals (resamples=0 takes them as they are)" if bare else "are of other weights or settings"
        log.warning("%s: its %d points %s; measured anew, and those set aside", curve.folder / KEPT, count, why)


def _asked_scales(given: Any) -> list[float]:
    """The scales of guidance that are asked for; [] stands for the usual ones."""
    scales = given if isinstance(given, list) else [given]
    if given is None:
        return []
    if not scales or not all(accepts(float, scale) for scale in scales):
        raise UserError(f"guidance.scale={given}: expected a number, or a list of numbers, at least one scale")
    return [float(scale) for scale in scales]


def _usual_scales(tree: dict[str, Any], model: Drawer, sampling: Sampling) -> list[float]:
    """The scale of a run's own guidance; without one, or for guidance that `tree` names, `SCALES`, or 1 alone for a
    model that cannot be guided.
    """
    if "_target_" not in tree["guidance"]:
        own = model.sampling({key: tree[key] for key in ("weak_model", "first_stage", "use_conditions")})
        if own.chosen["guidance"] and own.guidance.scale is not None:
            return [own.guidance.scale]
    try:
        model.left_out(sampling.with_scale(SCALES[-1]))
    except ValueError:
        return [1.0]
    return list(SCALES)


def _sampling(tree: dict, model: Drawer) -> Sampling:
    """How to sample, at whatever scale."""
    guidance = with_classes({key: value for key, value in tree["guidance"].items() if key != "scale"})
    if "_target_" in guidance:
        guidance["scale"] = 1.0
    return model.sampling({**tree, "guidance": guidance or None})


def _sets(curves: list[Curve], protocol: Protocol | None) -> Sets:
    """The data of each model, checked: the training data, or other shards read in the same way."""
    found: Sets = {}
    for curve in curves:
        tree, own = curve.tree, curve.model.data
        if tree["model"] not in found:
            shards = own if tree["data"] is None else own.over(tree["data"], "data")
            data = with_fields_of(tree, shards, curve.model, curve.sampling)
            images = reference_of(own, tree["reference"])
            _check_images(data, images, tree)
            found[tree["model"]] = data, images
        spec = found[tree["model"]][0].batch_spec
        _check_fields(curve, spec)
        check_paired(tree["paired"], protocol.subsets if protocol else {}, spec, curve.model.image_size)
    return found


def reference_of(data: ShardData, given: str | list[str] | None) -> ShardData | StoredReference:
    """What samples are compared with: images, or what a file has of them."""
    if is_stored(given):
        return stored(str(given), data)
    return data if given is None else data.over(given, "reference")


def _check_fields(curve: Curve, spec: dict[str, str]) -> None:
    """Raises ValueError unless the data give what the model of a curve is conditioned on."""
    check_conditions(curve.model, spec, curve.sampling)
    for field in curve.sampling.fields - spec.keys():
        raise UserError(f"loss_guidance reads {field!r}, which data.fields of the run does not give")


def _check_images(data: ShardData, images: ShardData | StoredReference, tree: dict[str, Any]) -> None:
    """Raises ValueError unless there are `images` to compare with, and `data` to draw for."""
    for each in (data, images):
        each.setup()
    if "image" not in images.batch_spec:
        raise UserError("data.with_images=false: there are no images to compare with")
    if images.num_train < FEWEST:
        key, kind = ("data.train", "training ") if tree["reference"] is None else ("reference", "")
        raise UserError(f"{key}: at least {FEWEST} {kind}images are needed to compare with, it has {images.num_train}")
    if data.num_train == 0:
        raise UserError("data: the shards hold no samples to take conditions from")


def _measure(
    tree: dict, curves: list[Curve], sets: Sets, by: Yardsticks, paired: Paired | None, samples: SamplesFile | None,
    rank: int, world_size: int,
) -> None:  # fmt: skip
    """All that is missing, each rank its share of the samples; each point is kept by rank 0 once it is done."""
    # of the curves, which are the same on all ranks: `sets` has more on ranks that do not see what is on disk
    models = dict.fromkeys(curve.tree["model"] for curve in curves)
    against = {path: by.reference(sets[path][1], rank, world_size) for path in models}
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(), disable=rank != 0) as bars:
        total = sum(len(curve.missing) for curve in curves) * tree["num_samples"]
        bar = bars.add_task(f"sampling {curves[0].model.name}", total=total)

        def advance(count: int, model: Drawer) -> None:
            words = " ".join(filter(None, (f"sampling {model.name}", words_of(model.residency))))
            bars.update(bar, advance=count * world_size, description=words)

        for curve in curves:
            path = curve.tree["model"]
            data, images = sets[path]
            for scale in curve.missing:
                point = measure(
                    curve.model, curve.sampling.with_scale(scale), data, against[path], tree["num_samples"],
                    by.backbone, by.alignment, tree["seed"], tree["batch_size"], by.device,
                    partial(advance, model=curve.model), rank, world_size, paired=paired,
                    resamples=tree["resamples"], keep=samples.add if samples else lambda images: None,
                    folder=curve.folder,
                    turns=turns_of(curve.model, tree["turns"]),
                )  # fmt: skip
                if samples:
                    samples.write()
                if curve.protocol and rank == 0:
                    of = None if images.num_train == UNKNOWN else images.num_train
                    point |= dict(zip(COUNTS, (tree["num_samples"] - point[LOST], of), strict=True))
                curve.done[f"{scale:g}"] = point
                if rank == 0:
                    keep(curve.folder, curve.identity, alignment_key(by.alignment), curve.done)
