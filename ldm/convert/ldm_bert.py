"""The trained token transformers as diffusers' LDMBertModel: its config and its names for our weights."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldm.convert.foreign import State

_RENAMED = (
    (r"token_emb", "model.embed_tokens"),
    (r"pos_emb\.emb", "model.embed_positions"),
    (r"norm", "model.layer_norm"),
    (r"to_logits", "to_logits"),
)
_LAYERS = (  # of each pair of ours: attention with its norm, then the feed-forward with its own
    {"0": "self_attn_layer_norm", "1.to_q": "self_attn.q_proj", "1.to_k": "self_attn.k_proj",
     "1.to_v": "self_attn.v_proj", "1.to_out": "self_attn.out_proj"},
    {"0": "final_layer_norm", "1.net.0.0": "fc1", "1.net.2": "fc2"},
)  # fmt: skip


def config(state: Mapping[str, Tensor], num_heads: int, head_width: int) -> dict[str, Any]:
    """config.json of a transformer with these weights, ours by name."""
    vocabulary, width = state["token_emb.weight"].shape
    layers = {int(name.split(".")[2]) for name in state if name.startswith("attn_layers.")}
    return {
        "architectures": ["LDMBertModel"],
        "model_type": "ldmbert",
        "vocab_size": vocabulary,
        "max_position_embeddings": len(state["pos_emb.emb.weight"]),
        "d_model": width,
        "encoder_layers": len(layers) // 2,
        "encoder_ffn_dim": 4 * width,
        "encoder_attention_heads": num_heads,
        "head_dim": head_width,
        "activation_function": "gelu",
        "dropout": 0.0,
        "pad_token_id": 0,
    }


def names(state: Mapping[str, Tensor]) -> State:
    """A TextTransformer's weights under the names of LDMBertModel."""
    return {_theirs(name): tensor for name, tensor in state.items()}


def _theirs(name: str) -> str:
    layer = re.fullmatch(r"attn_layers\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if layer:
        pair, half = divmod(int(layer[1]), 2)
        return f"model.layers.{pair}.{_LAYERS[half][layer[2]]}.{layer[3]}"
    [renamed] = [re.sub(f"^{ours}", theirs, name) for ours, theirs in _RENAMED if re.match(rf"{ours}\.", name)]
    return renamed
