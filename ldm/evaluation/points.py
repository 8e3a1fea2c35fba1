"""Measured points of a curve, saved with what they depend on, so that a killed evaluation can be resumed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ldm.checkpoint.weights import load as load_weights
from ldm.drawer import Drawer
from ldm.errors import UserError
from ldm.evaluation.guidance_curve import Point
from ldm.evaluation.stored_reference import content_of, facts_of
from ldm.files import read_json, write_json
from ldm.networks.precision import precision_told

KEPT = "points.json"


def keep(folder: Path, identity: str, alignment: str, points: dict[str, Point]) -> None:
    """Write the `points` {scale: metrics} of an `identity`, whose column of the alignment is `alignment`.

    Those of another identity that were there are set aside, and found again when they are asked for.
    """
    kept = folder / KEPT
    if kept.exists():
        other = _read(kept)["identity"]
        if other != identity:
            kept.replace(_aside(folder, other))
    write_json(kept, {"identity": identity, "alignment": alignment, "points": points})


def identity_of(model: Drawer, tree: dict[str, Any]) -> str:
    """What the points depend on besides the scale; points of another identity are measured again."""
    keys = ("num_samples", "num_steps", "seed", "sampler", "sigmas", "metric", "alignment")
    facts = {"weights": [weights.digest for weights in model.weights], **{key: tree[key] for key in keys}}
    if model.settings:
        facts["settings"] = model.settings
    guidance = {key: value for key, value in tree["guidance"].items() if key != "scale"}
    if guidance:
        facts["guidance"] = guidance
    if tree["loss_guidance"]:
        facts |= {key: tree[key] for key in ("loss_guidance", "operator", "distance")}
    if tree["use_conditions"] is not None:
        facts["use_conditions"] = sorted(tree["use_conditions"])
    facts |= {key: tree[key] for key in ("tiling", "paired", "resamples", "derived") if tree[key]}
    facts |= {key: tree[key] for key in ("data", "reference") if tree[key] is not None}
    facts |= precision_told(tree["precision"])
    if tree["protocol"]:
        facts["protocol"] = {key: tree["protocol"].get(key) for key in ("name", "subsets")}
    facts |= facts_of(tree["reference"])
    if tree["data"] is not None:
        facts["data_content"] = content_of(tree["data"], "data")
    if {"image", "mask"} <= model.fields:
        facts["known_pixels"] = "kept"  # older points are of samples that did not keep them
    if tree["paired"] and model.first_stage.spec.f > 1:
        facts["ceiling"] = "first stage"  # older points have no such columns
    for key in ("weak_model", "classifier"):
        if tree[key]:
            facts[key] = load_weights(Path(tree[key])).digest
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def points_of(folder: Path, identity: str) -> dict[str, Point]:
    """The points measured before, if they have this `identity`. Raises ValueError for a file of another format."""
    for kept in (folder / KEPT, _aside(folder, identity)):
        if kept.exists() and (content := _read(kept))["identity"] == identity:
            return content["points"]
    return {}


def others(folder: Path) -> tuple[str, int]:
    """The identity of the points that are kept in a folder, and how many they are; ("", 0) where there are none."""
    kept = folder / KEPT
    if not kept.exists():
        return "", 0
    content = _read(kept)
    return content["identity"], len(content["points"])


def _aside(folder: Path, identity: Any) -> Path:
    return folder / f"points-{str(identity)[:8]}.json"


def _read(kept: Path) -> dict[str, Any]:
    content = read_json(kept)
    if not isinstance(content.get("points"), dict) or "identity" not in content:
        raise UserError(f"{kept}: not the points of a curve; delete it to measure anew")
    return content
