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
from ldm.device import choose
from ldm.errors import UserError
from ldm.evaluation.first_stage import evaluate_first_stage
from ldm.evaluation.guidance_curve import Point, alignment_key, measure
from ldm.evaluation.report.plots import trade_off
from ldm.evaluation.table import write_csv
from ldm.evaluation.yardsticks import Yardsticks, yardsticks_of
from ldm.files import read_json, write_json
from ldm.generate import Sampling, check_guidance
from ldm.holding import held
from ldm.model import Model
from ldm.run import load

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
    given = tree["guidance"]["scale"]
    scales = given if isinstance(given, list) else [given]
    if not all(accepts(float, scale) for scale in scales):
        raise UserError(f"guidance.scale={given}: expected a number, or a list of numbers")
    scales = [float(scale) for scale in scales]
    if not scales or tree["num_samples"] < FEWEST:
        raise UserError(f"guidance.scale needs at least one scale, num_samples at least {FEWEST}")
    device = choose(tree["device"])
    path = Path(tree["model"])
    model = load(path, tree["first_stage"], tree["ema"]).to(device).tuned(tree["compile"])
    folder = Path(tree["out"]) if tree["out"] else (path if path.is_dir() else path.parent) / f"evaluation-{model.name}"
    kept = folder / "points.json"
    identity = _identity(model, tree)
    with held(folder, "evaluating into"):
        done = _points_of(kept, identity)
        missing = [scale for scale in scales if f"{scale:g}" not in done]
        if missing:
            sampling = _sampling(tree, model, missing)
            _check_data(model)
            measured_by = yardsticks or yardsticks_of(tree, device)
            _measure(tree, model, sampling, missing, done, kept, identity, measured_by)
        rows = [{"scale": scale, **done[f"{scale:g}"]} for scale in scales]
        write_csv(folder / "curve.csv", rows)
        quality, alignment = curve_keys(rows[0])
        points = [(row["scale"], row[quality], row[alignment]) for row in rows]
        trade_off(folder / "curve.png", {model.name: points}, quality_label=quality, alignment_label=alignment)
    return rows, folder


def curve_keys(point: Point) -> tuple[str, str]:
    """The columns of a point that make the curve: its KID and its alignment, whatever the backbones."""
    return (
        next(name for name in point if name.startswith("kid/")),
        next(name for name in point if name.startswith(("alignment_score/", "clip_score/"))),
    )


def _sampling(tree: dict, model: Model, scales: list[float]) -> Sampling:
    """How to sample. Raises ValueError if the model cannot be sampled so at one of the scales."""
    guidance = {**tree["guidance"], "scale": scales[0]} if "_target_" in tree["guidance"] else None
    sampling = model.sampling({**tree, "guidance": guidance})
    for scale in scales:
        check_guidance(sampling.with_scale(scale).guidance, model.conditioner)
    return sampling


def _check_data(model: Model) -> None:
    """Raises ValueError unless the training data give what a model is evaluated by and conditioned on."""
    given = model.parts["data"].fields
    if "caption" not in given:
        raise UserError(
            "evaluate compares images with captions (alignment=), and the data of this run has none in data.fields"
        )
    for name, field in model.conditioner.missing({key: None for key in ("caption", "label") if key in given}).items():
        raise UserError(
            f"conditioner.{name} reads {field!r}: evaluate draws for the captions and labels of the training data "
            "only, so that this model cannot be evaluated yet"
        )
    model.parts["data"].setup()
    if model.parts["data"].num_train < FEWEST:
        raise UserError(f"data.train: at least {FEWEST} training images are needed to compare with")


def _measure(
    tree: dict,
    model: Model,
    sampling: Sampling,
    scales: list[float],
    done: dict,
    kept: Path,
    identity: str,
    by: Yardsticks,
) -> None:
    against = by.reference(model.parts["data"])
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn()) as progress:
        bar = progress.add_task(f"sampling {model.name}", total=len(scales) * tree["num_samples"])
        for scale in scales:
            done[f"{scale:g}"] = measure(
                model, sampling.with_scale(scale), against, tree["num_samples"], by.backbone, by.alignment,
                tree["seed"], tree["batch_size"], by.device,
                lambda count: progress.advance(bar, count),
            )  # fmt: skip
            write_json(kept, {"identity": identity, "alignment": alignment_key(by.alignment), "points": done})


def _identity(model: Model, tree: dict[str, Any]) -> str:
    """What the points depend on besides the scale; other points are measured anew."""
    keys = ("num_samples", "num_steps", "seed", "sampler", "sigmas", "metric", "alignment")
    facts = {"weights": [weights.digest for weights in model.weights], **{key: tree[key] for key in keys}}
    if "_target_" in tree["guidance"]:
        facts["guidance"] = {key: value for key, value in tree["guidance"].items() if key != "scale"}
    if tree["loss_guidance"]:
        facts |= {key: tree[key] for key in ("loss_guidance", "operator", "distance")}
    if tree["tiling"]:
        facts["tiling"] = tree["tiling"]
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
