"""Measured points of a curve, saved with what they depend on, so that a killed evaluation can be resumed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ldm.checkpoint.weights import load as load_weights
from ldm.drawer import Drawer
from ldm.errors import UserError
from ldm.evaluation.guidance_curve import Point
from ldm.evaluation.stored_reference import facts_of
from ldm.files import read_json, write_json

KEPT = "points.json"


def keep(folder: Path, identity: str, alignment: str, points: dict[str, Point]) -> None:
    """Write the `points` {scale: metrics} of an `identity`, whose column of the alignment is `alignment`."""
    write_json(folder / KEPT, {"identity": identity, "alignment": alignment, "points": points})


def identity_of(model: Drawer, tree: dict[str, Any]) -> str:
    """What the points depend on besides the scale; points of another identity are measured again."""
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
    facts |= facts_of(tree["reference"])
    for key in ("weak_model", "classifier"):
        if tree[key]:
            facts[key] = load_weights(Path(tree[key])).digest
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def points_of(folder: Path, identity: str) -> dict[str, Point]:
    """The points measured before, if they have this `identity`. Raises ValueError for a file of another format."""
    kept = folder / KEPT
    if not kept.exists():
        return {}
    content = read_json(kept)
    if not isinstance(content.get("points"), dict):
        raise UserError(f"{kept}: not the points of a curve; delete it to measure anew")
    return content["points"] if content.get("identity") == identity else {}
