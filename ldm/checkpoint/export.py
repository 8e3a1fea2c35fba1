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

from ldm.checkpoint.foreign import State, average_name
from ldm.files import replace, write_text


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
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
    weight, bias = (state[f"quant_conv.{part}"].double() for part in ("weight", "bias"))
    means, logvars = weight.chunk(2)
    bias_means, bias_logvars = bias.chunk(2)
    after, after_bias = (state[f"post_quant_conv.{part}"].double() for part in ("weight", "bias"))
    folded = {
        "quant_conv.weight": torch.cat([means / std[:, None, None, None], logvars]),
        "quant_conv.bias": torch.cat([(bias_means - mean) / std, bias_logvars - 2 * std.log()]),
        "post_quant_conv.weight": after * std[:, None, None],
        "post_quant_conv.bias": after_bias + after[:, :, 0, 0] @ mean,
    }
    return {**state, **{name: value.to(state[name].dtype) for name, value in folded.items()}}


def write_diffusers_autoencoder(
    folder: Path, state: Mapping[str, Tensor], network: Mapping[str, Any], latent: Mapping[str, Any], image_size: int
) -> None:
    """An ``AutoencoderKL`` or ``VQModel`` folder of a first stage whose latents are whitened by `latent`.

    `state` bears the published names, `network` is the tree's autoencoder, `latent` has "mean" and "std". KL: the
    whitening is folded into the weights and scaling_factor is 1. Raises ValueError for a VQ model whose whitening is
    not a single factor, as diffusers can hold no other.
    """
    mean, std = latent["mean"], latent["std"]
    codebook = state.get("quantize.embedding.weight")
    if codebook is None:
        state, kind, own = fold_whitening(state, mean, std), "AutoencoderKL", {"scaling_factor": 1.0}
    elif any(mean) or len(set(std)) > 1:
        raise ValueError(
            "format=diffusers: a VQModel takes one scaling factor, and this first stage whitens each channel by its "
            "own mean and std; train it with task.single_factor=true, or import it with scale_factor="
        )
    else:
        own = {"num_vq_embeddings": len(codebook), "vq_embed_dim": codebook.shape[1], "scaling_factor": 1 / std[0]}
        kind = "VQModel"
    levels = range(len(network["multipliers"]))
    attends = [2**level in network["attention_factors"] for level in levels]
    config = {
        "_class_name": kind,
        "in_channels": network["image_channels"],
        "out_channels": network["image_channels"],
        "down_block_types": [f"{'Attn' if at else ''}DownEncoderBlock2D" for at in attends],
        "up_block_types": [f"{'Attn' if at else ''}UpDecoderBlock2D" for at in reversed(attends)],
        "block_out_channels": [network["channels"] * m for m in network["multipliers"]],
        "layers_per_block": network["num_blocks"],
        "act_fn": "silu",
        "latent_channels": len(mean),
        "norm_num_groups": network["norm_groups"],
        "sample_size": image_size,
        "mid_block_add_attention": network["mid_attention"],
        **own,
    }
    write_safetensors(
        folder / "diffusion_pytorch_model.safetensors", diffusers_names(state, len(levels)), {"format": "pt"}
    )
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
