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
    data, derived = _mapping(tree.get("data")), _mapping(tree.get("derived"))
    known, added = _mapping(data.get("fields")).keys() | derived.keys(), {}
    for part in map(_mapping, _mapping(tree.get("conditioner")).values()):
        field, target, keys = MADE.get(str(part.get("_target_")), (None, None, ()))
        if field and field not in known:
            added[field] = {"_target_": target, **{key: part[key] for key in keys if key in part}}
    return {**tree, "derived": {**derived, **added}} if added else tree


def _mapping(node: Any) -> Tree:
    """A node of a tree that may come from anyone; what is no mapping is refused later."""
    return node if isinstance(node, dict) else {}


def with_begun_fields(tree: Tree, name: str) -> Tree:
    """A run that older code began goes on under the command that began it, which names no derived fields."""
    begun = (Path(tree["runs_dir"]).expanduser() / name / "config.yaml").exists() and not tree["overwrite"]
    return with_derived_fields(tree) if begun else tree
