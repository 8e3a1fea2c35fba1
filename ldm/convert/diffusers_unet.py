"""The U-Net as diffusers holds it: a config of UNet2DModel or UNet2DConditionModel, and its names for our weights.

UNet2DModel attends to itself, UNet2DConditionModel to tokens too. What neither holds has a class of ours (remote/).
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldm.checkpoint.weights import NAMED
from ldm.convert.foreign import State
from ldm.errors import UserError

VERSION = "0.42.1"  # of diffusers, whose source and results these folders are made for and tested with

# Layers that are not in a block, and those within a residual block: our prefix -> theirs.
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "class_embedding.linear_1",
    "label_emb.0.2": "class_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "op": "conv",  # a downsampling without a residual block
}
_ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}


def heads(network: Mapping[str, Any], width: int) -> int:
    """The number of attention heads at a width."""
    return network["num_heads"] or width // network["head_channels"]


def head_width(network: Mapping[str, Any]) -> int | None:
    """Channels of a head of self-attention, as UNet2DModel's config has them; None: one head, however wide."""
    width = network["channels"] * network["multipliers"][-1]  # the middle's
    return None if network["num_heads"] == 1 else width // heads(network, width)


def is_head_width_enough(network: Mapping[str, Any]) -> bool:
    """Whether all places that attend have heads of that width, so that the config says what the network is."""
    widths = [network["channels"] * multiplier for multiplier in network["multipliers"]]
    attending = [width for level, width in enumerate(widths) if 2**level in network["attention_factors"]]
    own = head_width(network)
    return own is None or all(width // heads(network, width) == own for width in attending)


def holds(network: Mapping[str, Any], widths: Mapping[str, int]) -> bool:
    """Whether one of the two is a U-Net of a tree; `widths` are those of its conditions (Conditioners.widths).

    They have no patches, add no vector as it is, take no vector where there are no tokens, and no level that attends
    to tokens is halved or doubled in a residual block.
    """
    attends = [2**level in network["attention_factors"] for level in range(len(network["multipliers"]))]
    by_tokens = bool(widths["tokens_width"])
    return (
        network["patch_size"] == 1
        and network.get("project_vector", True)
        and (by_tokens or not widths["vector_width"])
        and not (by_tokens and network["resblock_updown"] and any(attends) and len(attends) > 1)
    )


def config(network: Mapping[str, Any], in_channels: int, widths: Mapping[str, int]) -> dict[str, Any]:
    """config.json of a U-Net for latents of `in_channels` that `holds`, but for its sample_size.

    `network` is the tree's, `widths` those of its conditions (Conditioners.widths).
    """
    by_tokens, by_vector, updown = widths["tokens_width"], widths["vector_width"], network["resblock_updown"]
    attends = [2**level in network["attention_factors"] for level in range(len(network["multipliers"]))]
    attending = "CrossAttn" if by_tokens else "Attn"
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if updown else ("DownBlock2D", "UpBlock2D")
    block_widths = [network["channels"] * multiplier for multiplier in network["multipliers"]]
    shared = {
        "_class_name": "UNet2DConditionModel" if by_tokens else "UNet2DModel",
        "_diffusers_version": VERSION,
        "sample_size": None,
        "in_channels": in_channels + widths["concat_channels"],
        "out_channels": in_channels,
        "center_input_sample": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "down_block_types": [f"{attending}DownBlock2D" if at else plain[0] for at in attends],
        "up_block_types": [f"{attending}UpBlock2D" if at else plain[1] for at in reversed(attends)],
        "block_out_channels": block_widths,
        "layers_per_block": network["num_blocks"],
        "downsample_padding": 1,
        "dropout": network["dropout"],
        "act_fn": "silu",
        "norm_num_groups": network["norm_groups"],
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift" if network["scale_shift_norm"] else "default",
    }
    if by_tokens:
        return shared | {
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "cross_attention_dim": by_tokens,
            "transformer_layers_per_block": network["transformer_depth"],
            "attention_head_dim": [heads(network, width) for width in block_widths],  # diffusers' name for their number
            "use_linear_projection": network.get("linear_projections", False),
            "class_embed_type": "projection" if by_vector else None,
            "projection_class_embeddings_input_dim": by_vector or None,
        }
    return shared | {
        "attention_head_dim": head_width(network),
        "attn_norm_num_groups": network["norm_groups"],  # else the middle loses its norm with scale_shift
        "downsample_type": "resnet" if updown else "conv",
        "upsample_type": "resnet" if updown else "conv",
        "add_attention": True,
    }


def names(state: Mapping[str, Tensor], network: Mapping[str, Any], by_tokens: bool) -> State:
    """Our U-Net's weights under diffusers' names; without tokens the rows of qkv become to_q, to_k and to_v.

    Raises ValueError naming weights that are not of such a U-Net.
    """
    renamed: State = {}
    strange = []
    for name, tensor in state.items():
        place, layer = _place(name, network)
        if place is None:
            strange.append(name)
        elif ".attentions." in place and not by_tokens:
            renamed |= {f"{place}.{new}": value for new, value in _self_attention(layer, tensor, network).items()}
        else:
            renamed[f"{place}.{layer}"] = tensor
    if strange:
        raise UserError(f"network: {', '.join(strange[:NAMED])} is in no U-Net of diffusers")
    return renamed


def _place(name: str, network: Mapping[str, Any]) -> tuple[str | None, str]:
    """(the module of diffusers that holds a weight of ours, its name in there); None for a name that has no place."""
    end = next((prefix for prefix in _ENDS if name.startswith(f"{prefix}.")), None)
    block = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)", name)
    if end:
        return _ENDS[end], _renamed(name.removeprefix(f"{end}."))
    if block is None:
        return None, name
    side, number, part, layer = block[1], int(block[2]), int(block[3]), _renamed(block[4])
    last_level, blocks = len(network["multipliers"]) - 1, network["num_blocks"]
    if side == "input":  # num_blocks blocks a level, then what halves it; before them the first convolution
        level, place = divmod(number - 1, blocks + 1)
        kind = "downsamplers" if place == blocks else ("resnets", "attentions")[part]
        return f"down_blocks.{level}.{kind}.{0 if place == blocks else place}", layer
    level, place = divmod(number, blocks + 1)  # num_blocks + 1 blocks a level; what doubles it is a part of the last
    kinds = ["resnets", *(["attentions"] if 2 ** (last_level - level) in network["attention_factors"] else [])]
    kind = [*kinds, "upsamplers"][part]
    return f"up_blocks.{level}.{kind}.{0 if kind == 'upsamplers' else place}", layer


def _renamed(layer: str) -> str:
    old = next((old for old in _RESIDUAL if layer.startswith(f"{old}.")), None)
    return layer if old is None else _RESIDUAL[old] + layer.removeprefix(old)


def _self_attention(layer: str, tensor: Tensor, network: Mapping[str, Any]) -> State:
    """One weight or bias of our self-attention as diffusers' of the same place."""
    part, _, kind = layer.rpartition(".")
    matrix = tensor.flatten(1) if tensor.ndim == 3 else tensor  # a 1x1 convolution over positions
    if part != "qkv":
        return {f"{_ATTENTION[part]}.{kind}": matrix}
    width = len(matrix) // 3
    rows = matrix.unflatten(0, (heads(network, width), 3, -1) if network["legacy_attention_order"] else (3, width))
    if network["legacy_attention_order"]:  # (head, q|k|v, d)
        rows = rows.transpose(0, 1).flatten(1, 2)
    return {f"to_{name}.{kind}": value.contiguous() for name, value in zip("qkv", rows, strict=True)}
