"""Adapters out: as the file that diffusers' load_lora_weights reads, or merged into the weights they adapt."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm.build import Parts
from ldm.checkpoint.weights import Weights
from ldm.convert import diffusers_unet
from ldm.convert.export import write_safetensors
from ldm.convert.exported_network import UNET
from ldm.errors import UserError
from ldm.networks import lora

FILE = "pytorch_lora_weights.safetensors"
NETWORK = "network."


def merged(tree: dict[str, Any], *found: Weights) -> tuple[dict[str, Any], list[Weights]]:
    """The tree of a run without its adapter, and weights of it with that in them; unchanged where it has none."""
    if not tree.get("adapter"):
        return tree, list(found)
    scale = Parts(tree)["adapter"].scale
    return {**tree, "adapter": None}, [replace(own, state=lora.merged(own.state, scale)) for own in found]


def export(tree: Mapping[str, Any], found: Weights, out: Path) -> list[Path]:
    """The adapter alone, for a pipeline of diffusers that has its U-Net; returns the file made.

    Raises ValueError if the run has none, or a network that diffusers has no such class for.
    """
    if not tree.get("adapter"):
        raise UserError(f"format=lora: {found.run} has no adapter; train one with adapter=lora branch={found.run}")
    if tree["network"]["_target_"] != UNET or not Parts(dict(tree))["conditioner"].widths()["tokens_width"]:
        raise UserError(
            "format=lora: diffusers loads adapters of U-Nets that attend to tokens only; the other formats write the "
            "model with its adapter merged into it"
        )
    scale = Parts(dict(tree))["adapter"].scale
    own = {name.removeprefix(NETWORK): tensor for name, tensor in found.state.items() if name.startswith(NETWORK)}
    small = {name.replace(".default.", "."): own[name] * (scale if lora.B in name else 1) for name in own
             if lora.A in name or lora.B in name}  # fmt: skip
    state = diffusers_unet.names(small, tree["network"], by_tokens=True)
    write_safetensors(out / FILE, {f"unet.{name}": tensor for name, tensor in state.items()}, {"format": "pt"})
    return [out / FILE]
