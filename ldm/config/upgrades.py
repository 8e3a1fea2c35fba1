"""Trees that older code wrote, as this code means them. A named function for each change; load_tree applies them."""

from pathlib import Path
from typing import Any

Tree = dict[str, Any]

# A condition that once made its field of "image" by itself, and what does it now; with keys that it is told by.
MADE = {
    "ldm.conditioners.image.LowResolution": ("low_resolution", "data.fields.low_resolution.LowResolution", ("factor",)),
    "ldm.conditioners.image.MaskedImage": ("mask", "data.fields.holes.Holes", ()),
    "ldm.conditioners.clip_image.clip_image": ("style", "data.fields.window.Window", ()),
}


def upgraded(tree: Tree) -> Tree:
    """The tree with all that has changed since it was written."""
    return with_derived_fields(tree)


def with_derived_fields(tree: Tree) -> Tree:
    """Small pictures, holes and styles were made by their conditioners of "image"; now derived= makes them.

    Nothing is added where the data gives them, or something derived does.
    """
    conditioners, data = tree.get("conditioner"), tree.get("data")
    if not isinstance(conditioners, dict) or not isinstance(data, dict):
        return tree
    added = {}
    for part in conditioners.values():
        field, target, keys = MADE.get(str(part.get("_target_")) if isinstance(part, dict) else "", (None, None, ()))
        if field and field not in {**(data.get("fields") or {}), **(tree.get("derived") or {})}:
            added[field] = {"_target_": target, **{key: part[key] for key in keys if key in part}}
    return {**tree, "derived": {**(tree.get("derived") or {}), **added}} if added else tree


def with_begun_fields(tree: Tree, name: str) -> Tree:
    """A run that older code began goes on under the command that began it, which names no derived fields."""
    begun = (Path(tree["runs_dir"]).expanduser() / name / "config.yaml").exists() and not tree["overwrite"]
    return with_derived_fields(tree) if begun else tree
