"""Which conditions of a model see by a stand-in for a published encoder: what every figure of it has to say."""

from pathlib import Path

from ldm.config import load_tree
from ldm.drawer import Drawer
from ldm.places import paths_of

STAND_IN = "ldm.conditioners.image_features.image_features"
NOTE = "stand_in.json"  # which scripts/stand_in_clip.py writes into an encoder's folder


def stand_ins(model: Drawer) -> list[str]:
    """The names of these conditions, in order."""
    found: dict[str, None] = {}
    for weights in model.weights:
        conditioner = paths_of(load_tree(weights.run / "config.yaml").get("conditioner"), weights.run)
        for name, part in (conditioner or {}).items():
            folder = part.get("path")
            if part["_target_"] == STAND_IN or (folder and (Path(folder).expanduser() / NOTE).exists()):
                found[name] = None
    return list(found)


def said_of(model: Drawer) -> str:
    """What a figure of `model` says of its stand-ins; nothing where it has none."""
    found = stand_ins(model)
    return f"stand-ins for published encoders: {', '.join(found)}" if found else ""


def with_stand_ins(label: str, model: Drawer) -> str:
    """The label of an axis, and above it what has to be said."""
    return "\n".join(filter(None, (said_of(model), label)))
