"""Trained models in the formats of others: the published layout, safetensors, diffusers folders.

Nothing of diffusers is imported: a folder is a config.json and a safetensors file under its names.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ldm.convert.foreign import State, average_name
from ldm.errors import UserError
from ldm.files import replace, write_json


def write_published(path: Path, state: Mapping[str, Tensor], average: Mapping[str, Tensor], global_step: int) -> None:
    """A ``torch.save`` dict as published: ``state_dict`` (with ``model_ema.*`` if there is an average) and step.

    `state` and `average` bear the published names.
    """
    ema = {average_name(name): value for name, value in average.items()}
    content = {"state_dict": {**state, **ema}, "global_step": global_step}
    replace(path, lambda temporary: torch.save(content, temporary))


def write_safetensors(path: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """One safetensors file; `facts` go into its header as JSON texts."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    header = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
    replace(path, lambda temporary: save_file(plain, temporary, metadata=header))


# ---------------------------------------------------------------------------------------------------------------
# diffusers: AutoencoderKL and VQModel

# Published names of a first stage -> diffusers' (levels of the decoder are counted the other way round there).
_RENAMED = (
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"encoder\.down\.(\d+)\.attn\.", r"encoder.down_blocks.\1.attentions."),
    (r"encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"decoder\.up\.(\d+)\.block\.", r"decoder.up_blocks.\1.resnets."),
    (r"decoder\.up\.(\d+)\.attn\.", r"decoder.up_blocks.\1.attentions."),
    (r"decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"(coder)\.norm_out\.", r"\1.conv_norm_out."),
)
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def diffusers_names(state: Mapping[str, Tensor], num_levels: int) -> State:
    """A first stage's published state under diffusers' names; its 1x1 convolutions in attention become matrices."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"up_blocks\.(\d+)\.", lambda m: f"up_blocks.{num_levels - 1 - int(m[1])}.", name)
        attention = re.fullmatch(r"(.*\.attentions\.\d+)\.(\w+)\.(\w+)", name)
        if attention:
            name = f"{attention[1]}.{_ATTENTION[attention[2]]}.{attention[3]}"
            tensor = tensor.flatten(1) if tensor.ndim == 4 else tensor
        renamed[name] = tensor
    return renamed


def fold_whitening(state: Mapping[str, Tensor], mean: list[float], std: list[float]) -> State:
    """A KL first stage whose latents are the whitened (z - mean) / std themselves, by its two 1x1 convolutions.

    `state` bears the published names. Exact but for rounding, and for log-variances beyond the limits [-30, 20].
    """
    shift, scale = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
    weight, bias = (state[f"quant_conv.{part}"].double() for part in ("weight", "bias"))
    means, logvars = weight.chunk(2)
    bias_means, bias_logvars = bias.chunk(2)
    after, after_bias = (state[f"post_quant_conv.{part}"].double() for part in ("weight", "bias"))
    folded = {
        "quant_conv.weight": torch.cat([means / scale[:, None, None, None], logvars]),
        "quant_conv.bias": torch.cat([(bias_means - shift) / scale, bias_logvars - 2 * scale.log()]),
        "post_quant_conv.weight": after * scale[:, None, None],
        "post_quant_conv.bias": after_bias + after[:, :, 0, 0] @ shift,
    }
    return {**state, **{name: value.to(state[name].dtype) for name, value in folded.items()}}


def has_one_factor(latent: Mapping[str, Any]) -> bool:
    """Whether one scale factor is all that whitens the latents."""
    return not any(latent["mean"]) and len(set(latent["std"])) == 1


def one_factor(state: State, latent: Mapping[str, Any], first_stage: object) -> tuple[State, float]:
    """(the first stage, the one factor its latents are scaled by), for formats that support no other whitening.

    Several factors and means of a KL model are folded into its weights; of a VQ model they cannot be: ValueError
    naming `first_stage`, the run it is from.
    """
    mean, std = latent["mean"], latent["std"]
    if has_one_factor(latent):
        return state, 1 / std[0]
    if "quantize.embedding.weight" in state:
        raise UserError(
            f"first_stage={first_stage}: this VQ model whitens each channel by its own mean and std, and other formats "
            "take one scale factor; train it with task.single_factor=true, or import it with scale_factor="
        )
    return fold_whitening(state, mean, std), 1.0


def fold_factor(state: State, factor: float) -> State:
    """A first stage whose latents are scaled by `factor` already: its convolutions there, and its codes, take it."""
    codebook = "quantize.embedding.weight"
    if codebook not in state:
        num_channels = len(state["quant_conv.bias"]) // 2
        return fold_whitening(state, [0.0] * num_channels, [1 / factor] * num_channels)
    larger = {name: state[name] * factor for name in ("quant_conv.weight", "quant_conv.bias", codebook)}
    return {**state, **larger, "post_quant_conv.weight": state["post_quant_conv.weight"] / factor}


def write_diffusers_autoencoder(
    folder: Path, state: Mapping[str, Tensor], network: Mapping[str, Any], factor: float, image_size: int
) -> list[Path]:
    """An ``AutoencoderKL`` or ``VQModel`` folder of a first stage whose latents are scaled by `factor`; its files.

    `state` bears the published names, `network` is the tree's autoencoder.
    """
    codebook = state.get("quantize.embedding.weight")
    z_channels, num_channels = state["post_quant_conv.weight"].shape[:2]
    if codebook is None and z_channels != num_channels:
        raise UserError(
            f"autoencoder.z_channels={z_channels}: diffusers' AutoencoderKL has as many as the latent, {num_channels}; "
            "export format=safetensors"
        )
    if codebook is None:
        kind, own = "AutoencoderKL", {"latent_channels": len(state["quant_conv.bias"]) // 2}
    else:
        kind = "VQModel"
        own = {"num_vq_embeddings": len(codebook), "vq_embed_dim": num_channels, "latent_channels": z_channels}
    levels = range(len(network["multipliers"]))
    attends = [2**level in network["attention_factors"] for level in levels]
    config = {
        "_class_name": kind,
        "scaling_factor": factor,
        "in_channels": network["image_channels"],
        "out_channels": network["image_channels"],
        "down_block_types": [f"{'Attn' if at else ''}DownEncoderBlock2D" for at in attends],
        "up_block_types": [f"{'Attn' if at else ''}UpDecoderBlock2D" for at in reversed(attends)],
        "block_out_channels": [network["channels"] * m for m in network["multipliers"]],
        "layers_per_block": network["num_blocks"],
        "act_fn": "silu",
        "norm_num_groups": network["norm_groups"],
        "sample_size": image_size,
        "mid_block_add_attention": network["mid_attention"],
        **own,
    }
    return write_diffusers_model(folder, config, diffusers_names(state, len(levels)))


def write_diffusers_model(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> list[Path]:
    """A folder that a model of diffusers is read from; its files."""
    path = folder / "diffusion_pytorch_model.safetensors"
    write_safetensors(path, state, {"format": "pt"})
    return [write_json(folder / "config.json", config), path]
