"""OpenCLIP's text encoder, as the published files of Stable Diffusion 2 hold it, as one of transformers.

They take what the last block but one gives, normalised (``penultimate``): of a file's blocks the last is left out.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldm.conditioners import clip
from ldm.convert.foreign import State
from ldm.errors import UserError

PREFIX = "cond_stage_model.model."
BLOCKS = "transformer.resblocks."
_ENDS = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def encoder(published: Mapping[str, Tensor], source: str) -> tuple[dict[str, Any], State]:
    """(config.json, weights) of the CLIPTextModel in a state below `PREFIX`, whose layers its shapes tell.

    Raises ValueError if the state has no such encoder.
    """
    numbers = [int(name.removeprefix(BLOCKS).split(".")[0]) for name in published if name.startswith(BLOCKS)]
    if len(set(numbers)) < 2 or not _ENDS.keys() <= published.keys():
        raise UserError(f"{source}: its text encoder ({PREFIX}*) is not a whole one of OpenCLIP")
    config = {
        **clip.OPEN_CLIP,
        "vocab_size": len(published["token_embedding.weight"]),
        "hidden_size": published["positional_embedding"].shape[1],
        "intermediate_size": 4 * published["positional_embedding"].shape[1],
        "num_hidden_layers": max(numbers),
    }
    config["num_attention_heads"] = config["hidden_size"] // clip.OPEN_CLIP_HEAD
    own: State = {theirs: published[name] for name, theirs in _ENDS.items()}
    for name, tensor in published.items():
        number, _, layer = name.removeprefix(BLOCKS).partition(".")
        if not name.startswith(BLOCKS) or int(number) == max(numbers):
            continue
        place, _, kind = layer.rpartition(".")
        if layer.startswith("attn.in_proj_"):
            kind = layer.removeprefix("attn.in_proj_")
            rows = zip("qkv", tensor.chunk(3), strict=True)
            own |= {f"encoder.layers.{number}.self_attn.{part}_proj.{kind}": value for part, value in rows}
        elif place in _BLOCK:
            own[f"encoder.layers.{number}.{_BLOCK[place]}.{kind}"] = tensor
    return config, own
