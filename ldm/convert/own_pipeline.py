"""What makes a folder a pipeline of ours: its code, its conditions, and the model_index.json that names all parts.

DiffusionPipeline.from_pretrained(folder, trust_remote_code=True) reads it, with torch, diffusers and, for texts,
transformers; the code (ldm.convert.remote) travels with the weights.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.conditioners.base import Conditioners
from ldm.convert import own_conditions
from ldm.convert.conditions import Latent
from ldm.convert.diffusers_unet import VERSION
from ldm.convert.exported_network import remote_code
from ldm.convert.own_conditions import Condition
from ldm.convert.schedulers import Scheduler
from ldm.files import write_json, write_text

log = logging.getLogger(__name__)
CLASSIFIER_FREE = "ldm.diffusion.guidance.ClassifierFree"
UNLIMITED = {"sigma_lo": 0.0, "sigma_hi": math.inf, "rescale": 0.0, "profile": None, "channels": None}
MODULE, CLASS = "latent_pipeline", "LatentPipeline"


def write(
    components: Mapping[str, list[str]], conditioner: Conditioners, conditions: Mapping[str, Condition],
    facts: Mapping[str, Any], out: Path,
) -> list[Path]:  # fmt: skip
    """Write the conditions, the code and model_index.json into `out`; returns the files.

    `components` are the parts that are there already, as model_index.json has them; `facts` are arguments of
    LatentPipeline.
    """
    files = [write_text(out / f"{MODULE}.py", remote_code(MODULE))]
    index: dict[str, Any] = {"_class_name": [MODULE, CLASS], "_diffusers_version": VERSION, **components}
    if conditions:
        written, own = own_conditions.write(conditioner, conditions, out)
        name = own["conditioner"][0]
        files += [*written, write_text(out / "conditioner" / f"{name}.py", remote_code(name))]
        index |= own
    return [*files, write_json(out / "model_index.json", {**index, **facts})]


def facts(tree: Mapping[str, Any], scheduler: Scheduler, latent: Latent) -> dict[str, Any]:
    """Arguments of LatentPipeline for a tree, but for the whitening of its latents."""
    guidance = tree.get("guidance") or {}
    is_plain = guidance.get("_target_") == CLASSIFIER_FREE
    if guidance and not is_plain:
        log.warning("guidance: the pipeline guides by one scale for all conditions, guidance_scale; 1 is its default")
    limited = [key for key, value in UNLIMITED.items() if guidance.get(key, value) != value]
    if is_plain and limited:
        log.warning("guidance.%s: the pipeline knows none, and guides everywhere by guidance_scale", limited[0])
    return {
        "process": scheduler.process,
        "noise_scale": scheduler.noise_scale,
        "channels": latent.channels,
        "downsampling": latent.f,
        "image_size": latent.side * latent.f,
        "num_inference_steps": tree["num_steps"],
        "guidance_scale": float(guidance["scale"]) if is_plain else 1.0,
    }
