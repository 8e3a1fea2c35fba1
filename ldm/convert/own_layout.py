"""A diffusion model that the published layout has no place for, as one safetensors file under our own names.

Beside it stands its config.yaml, which says what the names are of: the network and its first stage, conditions, noise.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.build import load_autoencoder
from ldm.checkpoint import weights
from ldm.config import dump
from ldm.convert.export import write_safetensors
from ldm.errors import UserError
from ldm.files import write_text
from ldm.overwriting import FIRST


def export(tree: Mapping[str, Any], found: weights.Weights, out: Path) -> list[Path]:
    """Write model.safetensors and config.yaml into `out`; returns both.

    Names begin with network, conditioner and, unless the model is of pixels, first_stage. The header has `latent` (the
    latents' statistics) and `intervals` (of sigma, that the model is for). Raises ValueError for the folder of a run,
    which has a config.yaml of its own.
    """
    if any((out / name).exists() for name in FIRST):
        raise UserError(f"out={out}: is a run's folder, whose config.yaml would be replaced; give another folder")
    state, facts = dict(found.state), {"intervals": found.metadata.get("intervals")}
    if tree.get("first_stage"):
        _, stage = load_autoencoder(Path(tree["first_stage"]))
        state |= {f"first_stage.{name}": tensor for name, tensor in stage.state.items()}
        facts["latent"] = stage.metadata["latent"]
    files = [out / "model.safetensors", out / "config.yaml"]
    write_safetensors(files[0], state, facts)
    write_text(files[1], dump(dict(tree)))
    return files
