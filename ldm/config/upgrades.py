"""Saved trees of older code, upgraded to what this code reads: one function for each change; load_tree applies them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.config.keys import bare

Tree = dict[str, Any]


def upgrade(tree: Tree) -> Tree:
    """A saved tree as it would be saved now; unknown keys stay as they are, and validation decides on them."""
    return with_levels(with_limits(with_slots(with_derived_fields(with_own_task(with_moved_targets(tree))))))


def with_own_task(tree: Tree) -> Tree:
    """A first stage that came with an imported diffusion model was described under the other's task."""
    task = _mapping(tree.get("task"))
    if (
        task.get("_target_") != "ldm.training.diffusion.DiffusionTask"
        or tree.get("network")
        or not tree.get("autoencoder")
    ):
        return tree
    kept = {key: task[key] for key in ("single_factor",) if key in task}
    return {**tree, "task": {"_target_": "ldm.training.autoencoder.AutoencoderTask", **kept}}


# Targets that have another name now: the old one, and the new.
MOVED = {
    "ldm.diffusion.noise.Discrete": "ldm.diffusion.noise.DiscreteNoise",
    "ldm.diffusion.sigmas.ddim": "ldm.diffusion.sigmas.ddim_sigmas",
    "ldm.diffusion.weighting.EDM": "ldm.diffusion.weighting.EDMWeighting",
}


def with_moved_targets(node: Any) -> Any:
    """A tree with the new names of its targets, wherever in it they stand; whatever else it holds stays as it is.

    Of the folder data/ the targets began with "data.", and begin with "ldm.data.".
    """
    if isinstance(node, dict):
        found = {key: with_moved_targets(value) for key, value in node.items()}
        target = found.get("_target_")
        if not isinstance(target, str):
            return found
        return {**found, "_target_": MOVED.get(target, f"ldm.{target}" if target.startswith("data.") else target)}
    return [with_moved_targets(value) for value in node] if isinstance(node, list) else node


LIMITED = ("sigma_lo", "sigma_hi", "rescale", "profile", "channels")


def with_limits(tree: Tree) -> Tree:
    """The limits of guidance were among its own keys; now they are a part of it."""
    part = _mapping(tree.get("guidance"))
    found = {key: part[key] for key in LIMITED if key in part}
    if not found or "limits" in part or not str(part.get("_target_")).startswith("ldm.diffusion.guidance."):
        return tree
    limits = {"_target_": "ldm.diffusion.limits.Limits", **found}
    return {**tree, "guidance": {**_without(part, *LIMITED), "limits": limits}}


LIMIT = re.compile(rf"(guidance|loss_guidance\.\w+)\.({'|'.join(LIMITED)})")


def with_moved_keys(words: Sequence[str]) -> list[str]:
    """Words of a command line, written for older code, with the keys of today."""
    moved = [(word, LIMIT.fullmatch(bare(word))) for word in words]
    return [word.replace(key[0], f"{key[1]}.limits.{key[2]}", 1) if key else word for word, key in moved]


ATTENDING = ("self_attention_factors", "cross_attention_factors")


def with_levels(tree: Tree) -> Tree:
    """An Efficient U-Net left out attention at factors that no level of it has; now they are refused."""
    part = _mapping(tree.get("network"))
    multipliers = part.get("multipliers")
    if part.get("_target_") != "ldm.networks.efficient_unet.EfficientUNet" or not isinstance(multipliers, list):
        return tree
    levels = [2**level for level in range(len(multipliers))]
    given = {key: part[key] for key in ATTENDING if isinstance(part.get(key), list)}
    kept = {key: [factor for factor in factors if factor in levels] for key, factors in given.items()}
    return {**tree, "network": {**part, **kept}} if kept != given else tree


def with_slots(tree: Tree) -> Tree:
    """Conditioners filled one slot each; now one may fill several."""
    parts = tree.get("conditioner")
    if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
        return tree
    return {**tree, "conditioner": clip_image_slots(text_slots(parts))}


def text_slots(parts: Tree) -> Tree:
    """A text filled one slot: `text_tokens` or `text_vector`, the latter dropped by the draw that is named text.

    As one they stand where the vector did: vectors are joined in their order, of tokens it does not matter.
    """
    slots = {"ldm.conditioners.text.text_tokens": ["tokens"], "ldm.conditioners.text.text_vector": ["vector"]}
    found = {
        name: {**part, "_target_": "ldm.conditioners.text.frozen_text", "slots": slots[part["_target_"]]}
        if part.get("_target_") in list(slots)  # which compares whatever may stand in a file
        else part
        for name, part in parts.items()
    }
    if found.get("text_vector") == parts.get("text_vector"):  # it is none of these
        return found
    text, vector = found.get("text"), found["text_vector"]
    asked = [_without(part, "slots", "memo_captions") for part in (text, vector) if part]
    if asked[0] != asked[-1]:  # they see other texts, or are dropped more often
        return found
    joined = {**text, "slots": ["tokens", "vector"]} if text else vector
    return {
        "text" if name == "text_vector" else name: joined if name == "text_vector" else part
        for name, part in found.items()
        if name != "text"
    }


def clip_image_slots(parts: Tree) -> Tree:
    """CLIP's embedding of an image filled one slot, `slot`."""
    return {
        name: {**_without(part, "slot"), "slots": [part["slot"]]}
        if part.get("_target_") == "ldm.conditioners.clip_image.clip_image" and "slot" in part
        else part
        for name, part in parts.items()
    }


def _without(part: Tree, *keys: str) -> Tree:
    return {key: value for key, value in part.items() if key not in keys}


# A condition that once made its field of "image" by itself, and what makes it now; with the keys that identify it.
MADE = {
    "ldm.conditioners.image.LowResolution": (
        "low_resolution",
        "ldm.data.fields.low_resolution.LowResolution",
        ("factor",),
    ),
    "ldm.conditioners.image.MaskedImage": ("mask", "ldm.data.fields.holes.Holes", ()),
    "ldm.conditioners.clip_image.clip_image": ("style", "ldm.data.fields.window.Window", ()),
}


def with_derived_fields(tree: Tree) -> Tree:
    """Small pictures, holes and styles were made by their conditioners of "image"; now derived= makes them.

    Nothing is added where the data gives them, or something derived does.
    """
    data, derived = _mapping(tree.get("data")), _mapping(tree.get("derived"))
    known, added = _mapping(data.get("fields")).keys() | derived.keys(), {}
    for part in map(_mapping, _mapping(tree.get("conditioner")).values()):
        field, target, keys = MADE.get(str(part.get("_target_")), (None, None, ()))
        if field and field not in known:
            added[field] = {"_target_": target, **{key: part[key] for key in keys if key in part}}
    return {**tree, "derived": {**derived, **added}} if added else tree


def _mapping(node: Any) -> Tree:
    """A node of an untrusted tree; what is not a mapping is refused later."""
    return node if isinstance(node, dict) else {}


def with_begun_fields(tree: Tree, name: str) -> Tree:
    """Let a run of older code be resumed by the command that began it, which names no derived fields."""
    begun = (Path(tree["runs_dir"]).expanduser() / name / "config.yaml").exists() and not tree["overwrite"]
    return with_derived_fields(tree) if begun else tree
