"""The evaluation of one model as a job: a first stage's reconstructions, or the guidance curve of a diffusion model.

The curve is resumable point by point, and written as CSV and PNG.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ldm.build import is_first_stage
from ldm.checkpoint.weights import load as load_weights
from ldm.config import accepts, load_tree
from ldm.data.module import ShardData
from ldm.device import choose
from ldm.drawer import Drawer
from ldm.errors import UserError
from ldm.evaluation.first_stage import evaluate_first_stage
from ldm.evaluation.guidance_curve import Point, alignment_key, measure
from ldm.evaluation.table import write_csv
from ldm.evaluation.yardsticks import Yardsticks, yardsticks_of
from ldm.files import read_json, write_json
from ldm.holding import held
from ldm.loading import load_drawer
from ldm.report.plots import trade_off
from ldm.sampling import Sampling

SCALES = (1.0, 2.0, 3.0, 5.0, 8.0)  # of guidance, where none are asked for
FEWEST = 4  # samples, and images to compare them with: precision asks for the third neighbour


def evaluate(tree: dict[str, Any], yardsticks: Yardsticks | None = None) -> tuple[list[Point], Path]:
    """Measure the model of `tree` (conf/evaluate.yaml); returns the rows of its table and the folder with the files.

    A diffusion model gives a row for each guidance scale, a first stage one for each metric (no rows on ranks but 0).
    `yardsticks`, of the kinds that `tree` names, are those of the models before; None loads them.
    """
    path = Path(tree["model"])
    config = (path.parent.parent if path.suffix == ".safetensors" else path) / "config.yaml"
    if config.exists() and is_first_stage(load_tree(config)):
        return evaluate_first_stage(tree)
    asked = _asked_scales(tree["guidance"].get("scale"))
    if tree["num_samples"] < FEWEST:
        raise UserError(f"num_samples at least {FEWEST}: precision asks for the third neighbour")
    device = choose(tree["device"])
    model = load_drawer(path, tree["first_stage"], tree["ema"]).to(device).tuned(tree["compile"])
    folder = Path(tree["out"]) if tree["out"] else (path if path.is_dir() else path.parent) / f"evaluation-{model.name}"
    kept = folder / "points.json"
    identity = _identity(model, tree)
    with held(folder, "evaluating into"):
        done = _points_of(kept, identity)
        sampling = _sampling(tree, model)
        scales = asked or _usual_scales(model, sampling)
        missing = [scale for scale in scales if f"{scale:g}" not in done]
        if missing:
            for scale in missing:
                model.left_out(sampling.with_scale(scale))
            data, images = (_over(model.data, tree[key]) for key in ("data", "reference"))
            _check_data(model, sampling, data, images)
            measured_by = yardsticks or yardsticks_of(tree, device)
            _measure(tree, model, sampling, missing, data, images, done, kept, identity, measured_by)
        rows = [{"scale": scale, **done[f"{scale:g}"]} for scale in scales]
        write_csv(folder / "curve.csv", rows)
        quality, alignment = curve_keys(rows[0])
        if alignment:
            points = [(row["scale"], row[quality], row[alignment]) for row in rows]
            trade_off(folder / "curve.png", {model.name: points}, quality_label=quality, alignment_label=alignment)
    return rows, folder


def _asked_scales(given: Any) -> list[float]:
    """The scales of guidance that are asked for; none are the usual ones."""
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


def curve_keys(point: Point) -> tuple[str, str | None]:
    """The columns of a point that make the curve: its KID and its alignment, if it has one, whatever the backbones."""
    alignments = (name for name in point if name.startswith(("alignment_score/", "clip_score/")))
    return next(name for name in point if name.startswith("kid/")), next(alignments, None)


def _sampling(tree: dict, model: Drawer) -> Sampling:
    """How to sample, at whatever scale."""
    guidance = {key: value for key, value in tree["guidance"].items() if key != "scale"}
    if "_target_" in guidance:
        guidance["scale"] = 1.0
    return model.sampling({**tree, "guidance": guidance or None})


def _over(data: ShardData, shards: str | list[str] | None) -> ShardData:
    """Training data, or what is read of other shards as of these."""
    return data if shards is None else data.over(shards)


def _check_data(model: Drawer, sampling: Sampling, data: ShardData, images: ShardData) -> None:
    """Raises ValueError unless `data` gives what the model is conditioned on, and `images` what to compare with."""
    spec = data.batch_spec
    for name, field in model.missing(spec, sampling).items():
        raise UserError(f"conditioner.{name} reads {field!r}, which data.fields of its run does not give")
    for field in sampling.fields - spec.keys():
        raise UserError(f"loss_guidance reads {field!r}, which data.fields of the run does not give")
    for each in (data, images):
        each.setup()
    if "image" not in images.batch_spec:
        raise UserError("data.with_images=false: there are no images to compare with")
    if images.num_train < FEWEST:
        raise UserError(f"data.train: at least {FEWEST} training images are needed to compare with")


def _measure(
    tree: dict,
    model: Drawer,
    sampling: Sampling,
    scales: list[float],
    data: ShardData,
    images: ShardData,
    done: dict,
    kept: Path,
    identity: str,
    by: Yardsticks,
) -> None:
    against = by.reference(images)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn()) as progress:
        bar = progress.add_task(f"sampling {model.name}", total=len(scales) * tree["num_samples"])
        for scale in scales:
            done[f"{scale:g}"] = measure(
                model, sampling.with_scale(scale), data, against, tree["num_samples"], by.backbone, by.alignment,
                tree["seed"], tree["batch_size"], by.device,
                lambda count: progress.advance(bar, count),
            )  # fmt: skip
            write_json(kept, {"identity": identity, "alignment": alignment_key(by.alignment), "points": done})


def _identity(model: Drawer, tree: dict[str, Any]) -> str:
    """What the points depend on besides the scale; other points are measured anew."""
    keys = ("num_samples", "num_steps", "seed", "sampler", "sigmas", "metric", "alignment")
    facts = {"weights": [weights.digest for weights in model.weights], **{key: tree[key] for key in keys}}
    guidance = {key: value for key, value in tree["guidance"].items() if key != "scale"}
    if guidance:
        facts["guidance"] = guidance
    if tree["loss_guidance"]:
        facts |= {key: tree[key] for key in ("loss_guidance", "operator", "distance")}
    if tree["use_conditions"] is not None:
        facts["use_conditions"] = sorted(tree["use_conditions"])
    if tree["tiling"]:
        facts["tiling"] = tree["tiling"]
    facts |= {key: tree[key] for key in ("data", "reference") if tree[key] is not None}
    for key in ("weak_model", "classifier"):
        if tree[key]:
            facts[key] = load_weights(Path(tree[key])).digest
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _points_of(kept: Path, identity: str) -> dict[str, Point]:
    if not kept.exists():
        return {}
    content = read_json(kept)
    if not isinstance(content.get("points"), dict):
        raise UserError(f"{kept}: not the points of a curve; delete it to measure anew")
    return content["points"] if content.get("identity") == identity else {}
