"""Trees that were saved by earlier versions, in the words of this one: a named function for each change."""

from typing import Any

Tree = dict[str, Any]


def upgrade(tree: Tree) -> Tree:
    """A saved tree as it would be saved now; what is unknown here stays as it is, for the validation to judge."""
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
