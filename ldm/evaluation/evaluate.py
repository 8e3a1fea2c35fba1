"""The evaluation of one model as a job: a first stage's reconstructions, or the guidance curve of a diffusion model.

Curves are resumable point by point, over any number of processes, and written as CSV and PNG.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ldm.build import is_first_stage
from ldm.config import accepts, load_tree
from ldm.data.module import ShardData
from ldm.device import choose
from ldm.drawer import Drawer
from ldm.errors import UserError
from ldm.evaluation.first_stage import evaluate_first_stage
from ldm.evaluation.grid import Cell, cells
from ldm.evaluation.guidance_curve import Point, alignment_key, measure
from ldm.evaluation.points import identity_of, keep, points_of
from ldm.evaluation.samples_file import SamplesFile, samples_file
from ldm.evaluation.stored_reference import StoredReference, is_stored, stored
from ldm.evaluation.table import write_csv
from ldm.evaluation.yardsticks import Yardsticks, yardsticks_of
from ldm.holding import held
from ldm.loading import load_drawer
from ldm.report.plots import trade_off
from ldm.sampling import Sampling
from ldm.training.distributed import broadcast, process_group, together

SCALES = (1.0, 2.0, 3.0, 5.0, 8.0)  # of guidance, where none are asked for
FEWEST = 4  # samples, and images to compare them with: precision asks for the third neighbour
Row = dict[str, Any]


@dataclass
class Curve:
    """Scales of guidance of one drawer under one recipe, and the points of them that are `done`, kept in `folder`."""

    model: Drawer
    columns: dict[str, str | int]  # what distinguishes it from the other curves of a grid
    folder: Path
    sampling: Sampling
    scales: list[float]
    identity: str
    done: dict[str, Point]

    @property
    def missing(self) -> list[float]:
        """The scales that are not measured yet."""
        return [scale for scale in self.scales if f"{scale:g}" not in self.done]

    @property
    def rows(self) -> list[Row]:
        """Of the table, one for each scale; all are measured."""
        return [{**self.columns, "scale": scale, **self.done[f"{scale:g}"]} for scale in self.scales]


def evaluate(tree: dict[str, Any], yardsticks: Yardsticks | None = None) -> tuple[list[Row], Path]:
    """Measure the model of `tree` (conf/evaluate.yaml); returns the rows of its table and the folder with the files.

    A diffusion model gives a row for each guidance scale of each cell of a grid, a first stage one for each metric. No
    rows on ranks but 0; an error of one is raised on all. `yardsticks`, of the kinds that `tree` names, are those of
    the models before; None loads them.
    """
    path = Path(tree["model"])
    config = (path.parent.parent if path.suffix == ".safetensors" else path) / "config.yaml"
    if config.exists() and is_first_stage(load_tree(config)):
        if tree["npz"]:
            raise UserError(f"npz={tree['npz']}: has samples of a diffusion model, and model= is a first stage")
        return evaluate_first_stage(tree)
    asked = _asked_scales(tree["guidance"].get("scale"))
    asked_cells = list(cells(tree))
    device = choose(tree["device"])
    with process_group(device) as (rank, world_size), ExitStack() as stack:
        if tree["num_samples"] < max(FEWEST, world_size):
            raise UserError(
                f"num_samples at least {max(FEWEST, world_size)}: precision asks for the third neighbour, and each "
                "process for a sample"
            )
        with together():
            names = dict.fromkeys(cell.tree["ema"] for cell in asked_cells)
            models = {
                ema: load_drawer(path, tree["first_stage"], ema).to(device).tuned(tree["compile"]) for ema in names
            }
            name = next(iter(models.values())).name
            own = (path if path.is_dir() else path.parent) / f"evaluation-{name}"
            folder = Path(tree["out"]) if tree["out"] else own
            if rank == 0:
                stack.enter_context(held(folder, "evaluating into"))
            curves = [_curve(models[cell.tree["ema"]], cell, folder, asked, rank) for cell in asked_cells]
            asked_points = [(curve, f"{scale:g}") for curve in curves for scale in curve.scales]
            samples = samples_file(tree["npz"], [f"{curve.identity} {scale}" for curve, scale in asked_points], rank)
            if samples and not samples.there:
                curves[0].done.pop(asked_points[0][1], None)
            missing = [curve for curve in curves if curve.missing]
            if missing:
                known = missing[0].model.data
                data, images = _over(known, tree["data"]), _against(known, tree["reference"])
                _check_images(data, images)
                for curve in missing:
                    _check_fields(curve, data)
                by = yardsticks or yardsticks_of(tree, device)
        for curve, done in zip(curves, broadcast([curve.done for curve in curves]), strict=True):
            curve.done = done
        missing = [curve for curve in curves if curve.missing]
        if missing:
            _measure(tree, missing, data, images, by, samples, rank, world_size)
        if rank:
            return [], folder
        return _write(folder, curves), folder


def _curve(model: Drawer, cell: Cell, folder: Path, asked: list[float], rank: int) -> Curve:
    """A curve with the points that rank 0 finds on disk; other ranks, which may not see it, are told which are done.

    Raises ValueError for a scale that is not measured yet and that the model cannot be guided at.
    """
    sampling, identity = _sampling(cell.tree, model), identity_of(model, cell.tree)
    own = folder / cell.name
    curve = Curve(
        model, cell.columns, own, sampling, asked or _usual_scales(model, sampling), identity,
        points_of(own, identity) if rank == 0 else {},
    )  # fmt: skip
    for scale in curve.missing:
        model.left_out(sampling.with_scale(scale))
    return curve


def _write(folder: Path, curves: list[Curve]) -> list[Row]:
    """The rows of all curves: each in its own folder as curve.csv and curve.png, those of a grid together as grid.*."""
    for curve in curves:
        _draw(curve.folder / "curve", [curve])
    if curves[0].columns:
        _draw(folder / "grid", curves)
    return [row for curve in curves for row in curve.rows]


def _draw(stem: Path, curves: list[Curve]) -> None:
    rows = [row for curve in curves for row in curve.rows]
    write_csv(stem.with_suffix(".csv"), rows)
    quality, alignment = curve_keys(rows[0])
    if alignment:
        labels = [", ".join(f"{key} {value}" for key, value in curve.columns.items()) for curve in curves]
        named = {
            label or curve.model.name: [(row["scale"], row[quality], row[alignment]) for row in curve.rows]
            for label, curve in zip(labels, curves, strict=True)
        }
        trade_off(stem.with_suffix(".png"), named, quality_label=quality, alignment_label=alignment)


def _asked_scales(given: Any) -> list[float]:
    """The scales of guidance that are asked for; [] stands for the usual ones."""
    scales = given if isinstance(given, list) else [given]
    if given is None:
        return []
    if not scales or not all(accepts(float, scale) for scale in scales):
        raise UserError(f"guidance.scale={given}: expected a number, or a list of numbers, at least one scale")
    return [float(scale) for scale in scales]


def _usual_scales(model: Drawer, sampling: Sampling) -> list[float]:
    """`SCALES`, or 1 alone for a model that cannot be guided."""
    try:
        model.left_out(sampling.with_scale(SCALES[-1]))
    except ValueError:
        return [1.0]
    return list(SCALES)


def curve_keys(point: Mapping[str, Any]) -> tuple[str, str | None]:
    """The columns of a point that make the curve: its KID, or its FID without one, and its alignment, if it has one."""
    alignments = (name for name in point if name.startswith(("alignment_score/", "clip_score/")))
    qualities = [name for name in point if name.startswith(("kid/", "fid/", "fd/"))]
    return max(qualities, key=lambda name: name.startswith("kid/")), next(alignments, None)


def _sampling(tree: dict, model: Drawer) -> Sampling:
    """How to sample, at whatever scale."""
    guidance = {key: value for key, value in tree["guidance"].items() if key != "scale"}
    if "_target_" in guidance:
        guidance["scale"] = 1.0
    return model.sampling({**tree, "guidance": guidance or None})


def _over(data: ShardData, shards: str | list[str] | None) -> ShardData:
    """The training data, or other `shards` read in the same way."""
    return data if shards is None else data.over(shards)


def _against(data: ShardData, given: str | list[str] | None) -> ShardData | StoredReference:
    """What samples are compared with: images, or what a file has of them."""
    return stored(str(given), data) if is_stored(given) else _over(data, given)


def _check_fields(curve: Curve, data: ShardData) -> None:
    """Raises ValueError unless `data` gives what the model of a curve is conditioned on."""
    spec = data.batch_spec
    for name, field in curve.model.missing(spec, curve.sampling).items():
        raise UserError(f"conditioner.{name} reads {field!r}, which data.fields of its run does not give")
    for field in curve.sampling.fields - spec.keys():
        raise UserError(f"loss_guidance reads {field!r}, which data.fields of the run does not give")


def _check_images(data: ShardData, images: ShardData | StoredReference) -> None:
    """Raises ValueError unless there are `images` to compare with."""
    for each in (data, images):
        each.setup()
    if "image" not in images.batch_spec:
        raise UserError("data.with_images=false: there are no images to compare with")
    if images.num_train < FEWEST:
        raise UserError(f"data.train: at least {FEWEST} training images are needed to compare with")


def _measure(
    tree: dict, curves: list[Curve], data: ShardData, images: ShardData | StoredReference, by: Yardsticks,
    samples: SamplesFile | None, rank: int, world_size: int,
) -> None:  # fmt: skip
    """All that is missing, each rank its share of the samples; each point is kept by rank 0 once it is done."""
    against = by.reference(images, rank, world_size)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(), disable=rank != 0) as bars:
        total = sum(len(curve.missing) for curve in curves) * tree["num_samples"]
        bar = bars.add_task(f"sampling {curves[0].model.name}", total=total)
        for curve in curves:
            for scale in curve.missing:
                point = measure(
                    curve.model, curve.sampling.with_scale(scale), data, against, tree["num_samples"], by.backbone,
                    by.alignment, tree["seed"], tree["batch_size"], by.device,
                    lambda count: bars.advance(bar, count * world_size), rank, world_size,
                    samples.add if samples else lambda images: None,
                )  # fmt: skip
                if samples:
                    samples.write()
                curve.done[f"{scale:g}"] = point
                if rank == 0:
                    keep(curve.folder, curve.identity, alignment_key(by.alignment), curve.done)
