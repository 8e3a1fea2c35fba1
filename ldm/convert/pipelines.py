"""A diffusion model as a folder of diffusers: unet, first stage, scheduler, what conditions it, model_index.json.

Unconditional, text and super-resolution models are whole pipelines for DiffusionPipeline.from_pretrained. For the other
conditions diffusers has none: their folder holds sample.py instead, which samples from the same parts. Nothing of
diffusers is imported here.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ldm.build import Parts, window_size
from ldm.checkpoint import weights
from ldm.convert import conditions, diffusers_unet, sample_script
from ldm.convert import export as exports
from ldm.convert.conditions import Latent
from ldm.convert.diffusers_unet import VERSION
from ldm.convert.foreign import State
from ldm.diffusion.schedule import Discrete
from ldm.errors import UserError
from ldm.files import write_json, write_text

log = logging.getLogger(__name__)
UNET = "ldm.networks.unet.UNet"
PREDICTIONS = {
    "ldm.diffusion.precond.Eps": "epsilon",
    "ldm.diffusion.precond.V": "v_prediction",
    "ldm.diffusion.precond.X0": "sample",
}
NAMED_SCHEDULES = {"ldm.diffusion.schedule.scaled_linear": "scaled_linear", "ldm.diffusion.schedule.linear": "linear"}
TRAILING = "ldm.diffusion.sigmas.trailing"
INSTEAD = "sample it with sample.py, or export format=safetensors"


def export(tree: Mapping[str, Any], found: weights.Weights, first_stage: State, factor: float, out: Path) -> list[Path]:
    """Write the model into the folder `out`; returns the files made.

    `first_stage` bears the published names, its latents are scaled by `factor`, and `tree` describes it. Raises
    ValueError naming what diffusers cannot hold.
    """
    if tree["network"]["_target_"] != UNET:
        raise UserError(f"network: diffusers is known to hold network=unet only; {INSTEAD}")
    intervals = found.metadata.get("intervals")
    if intervals and [tuple(pair) for pair in intervals] != [(0.0, math.inf)]:
        raise UserError(f"expert: one expert of several is no model for all of the noise; {INSTEAD}")
    parts = Parts({**tree, "first_stage": None})  # described by the tree
    scheduler = scheduler_config(tree, parts)
    conditioner, network = parts["conditioner"], tree["network"]
    widths = conditioner.widths()
    latent = _latent(tree, parts, first_stage)
    unet_config = diffusers_unet.config(network, latent.channels, widths, latent.side)
    unet = diffusers_unet.names(_split(parts, found), network, bool(widths["tokens_width"]))

    targets = {name: part["_target_"] for name, part in (tree["conditioner"] or {}).items()}
    written = conditions.write(conditioner.parts, targets, latent, out)
    if written.note:
        log.warning(written.note)
    if not written.divides:
        first_stage, factor = exports.fold_factor(first_stage, factor), 1.0
    place = written.first_stage if written.pipeline else "vae"
    files = exports.write_diffusers_autoencoder(
        out / place, first_stage, tree["autoencoder"], factor, window_size(tree)
    )
    unet_config["sample_size"] = written.sample_size or latent.side
    unet_class, module = unet_config["_class_name"], ""
    if not widths["tokens_width"] and not diffusers_unet.is_head_width_enough(network):
        unet_class, module = HEADS_CLASS, HEADS_MODULE
        unet_config["_class_name"] = unet_class
        files.append(write_text(out / "unet" / f"{module}.py", HEADS.format(num_heads=network["num_heads"])))
    files += exports.write_diffusers_model(out / "unet", unet_config, unet)
    files.append(write_json(out / "scheduler" / "scheduler_config.json", scheduler))

    first_stage_class = "VQModel" if latent.is_vq else "AutoencoderKL"
    if written.pipeline:
        index = {
            "_class_name": written.pipeline,
            "_diffusers_version": VERSION,
            place: ["diffusers", first_stage_class],
            "unet": [module or "diffusers", unet_class],
            "scheduler": ["diffusers", "DDIMScheduler"],
            **written.components,
        }
        return [*files, *written.files, write_json(out / "model_index.json", index)]
    text = sample_script.text(
        written.script, unet_class, module, first_stage_class, channels=latent.channels, side=latent.side,
        scale=(tree.get("guidance") or {}).get("scale", 1.0), num_steps=tree["num_steps"],
        length=scheduler["num_train_timesteps"],
    )  # fmt: skip
    return [*files, *written.files, write_text(out / "sample.py", text)]


# A U-Net of UNet2DModel's config has heads of one width; ours, as published, may have one number of heads.
HEADS_MODULE, HEADS_CLASS = "unet_heads", "UNet2DModelOfHeads"
HEADS = '''"""UNet2DModel with {num_heads} heads of attention at every width, which its config cannot say."""

from functools import wraps

from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention


class UNet2DModelOfHeads(UNet2DModel):
    @wraps(UNet2DModel.__init__)
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, Attention):
                module.heads = {num_heads}
'''


def _latent(tree: Mapping[str, Any], parts: Parts, first_stage: State) -> Latent:
    with torch.device("meta"):
        f = parts["autoencoder"].f
    side = window_size(tree)
    if side % f:
        raise UserError(f"image_size={side}: must be a multiple of the first stage's f = {f}")
    is_vq = "quantize.embedding.weight" in first_stage
    return Latent(parts["regularizer"].latent_channels, side // f, f, is_vq)


def _split(parts: Parts, found: weights.Weights) -> State:
    """The network's part of the weights; the conditioner takes its own. Raises ValueError if they do not fit."""
    with torch.device("meta"):
        network = parts["network"].state_dict()
    conditioner = parts["conditioner"].state_dict()
    own = {f"network.{name}": value for name, value in network.items()}
    own |= {f"conditioner.{name}": value for name, value in conditioner.items()}
    weights.check_fit(own, found.state, str(found.path))
    parts["conditioner"].load_state_dict({name: found.state[f"conditioner.{name}"] for name in conditioner})
    return {name: found.state[f"network.{name}"] for name in network}


def scheduler_config(tree: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    """scheduler_config.json of a DDIMScheduler with the levels of sigmas=ddim, or sigmas=trailing if that is the run's.

    They are the same where num_steps divides the number of timesteps. Raises ValueError for a schedule or precond that
    DDIM does not know.
    """
    schedule, target = parts["schedule"], tree["schedule"]["_target_"]
    prediction = PREDICTIONS.get(tree["precond"]["_target_"])
    if not isinstance(schedule, Discrete):
        raise UserError(f"schedule: the pipelines of diffusers take a chain of steps, as scaled_linear is; {INSTEAD}")
    if prediction is None:
        raise UserError(f"precond: diffusers' DDIM knows eps, v and x0, not this model's; {INSTEAD}")
    trailing = (tree["sigmas"] or {}).get("_target_") == TRAILING
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": schedule.num_timesteps,
        **_betas(tree["schedule"], target, schedule),
        "prediction_type": prediction,
        "timestep_spacing": "trailing" if trailing else "leading",
        "steps_offset": 1,
        "set_alpha_to_one": trailing,
        "clip_sample": False,
        "thresholding": False,
        "rescale_betas_zero_snr": False,
    }


def _betas(own: Mapping[str, Any], target: str, schedule: Discrete) -> dict[str, Any]:
    if target in NAMED_SCHEDULES and not own.get("zero_terminal_snr"):
        ends = {name: own[name] for name in ("beta_start", "beta_end")}
        return {"beta_schedule": NAMED_SCHEDULES[target], **ends, "trained_betas": None}
    alpha_bar = 1 / (1 + schedule.sigmas**2)
    betas = 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    return {"trained_betas": betas.tolist()}
