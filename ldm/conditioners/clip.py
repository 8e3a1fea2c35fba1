"""CLIP's text tokens as Stable Diffusion v1 takes them."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ldm.conditioners.base import Batch, Conditioner
from ldm.conditioners.caption_encoder import CaptionEncoder
from ldm.conditioners.projection import projection
from ldm.conditioners.text import TextEncoder
from ldm.errors import UserError

MAX_TOKENS = 77
# The text encoder of CLIP ViT-L/14.
CONFIG: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": MAX_TOKENS,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}


class ClipText(Conditioner):
    """batch["caption"], B texts -> tokens [B, 77, 768], padding among them; the null is the encoding of ''.

    With `width` they are brought to it by a learned projection; with `zero_null` the null is zeros. `path` is a folder
    with the encoder, which is frozen and not saved; '???' is no encoder, to count a model alone.
    """

    key = "caption"
    frozen: CaptionEncoder | None

    def __init__(
        self,
        path: str,
        width: int | None = None,
        zero_null: bool = False,
        drop_prob: float = 0.1,
        memo_captions: int = 0,
    ):
        frozen = None
        if path != "???":
            frozen = CaptionEncoder(_encoder(Path(path).expanduser()), memo_captions, zero_null=zero_null)
        encoder_width = frozen.width if frozen else CONFIG["hidden_size"]
        super().__init__({"tokens": width or encoder_width}, drop_prob, MAX_TOKENS)
        self.frozen = frozen
        self.project = projection(encoder_width, width)

    @property
    def encoder(self) -> TextEncoder:
        """The frozen encoder with its tokenizer."""
        return cast(TextEncoder, self.frozen.encoder.module)

    def forward(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        tokens, mask = self.frozen(batch, drop)
        return {"tokens": self.project(tokens), "tokens_mask": mask}

    def published_state(self) -> dict[str, Tensor]:
        if self.state_dict():
            raise UserError("conditioner.clip_text.width: published models have no projection of tokens")
        if self.frozen is None:
            return layout()
        state = self.frozen.encoder.module.model.state_dict()
        return {f"transformer.text_model.{_bare(name)}": value for name, value in state.items()}


@cache
def _encoder(folder: Path) -> TextEncoder:
    """One frozen encoder per process, however many models use it."""
    return TextEncoder.load(folder, MAX_TOKENS, see_padding=True, name="clip_text")


def layout() -> dict[str, Tensor]:
    """The encoder's state under the names of the published files, on the meta device."""
    from transformers import CLIPTextConfig, CLIPTextModel  # imported here: seconds that only its users pay

    with torch.device("meta"):
        state = CLIPTextModel(CLIPTextConfig(**CONFIG)).state_dict()
    return {f"transformer.text_model.{_bare(name)}": value for name, value in state.items()}


def _bare(name: str) -> str:
    """Without the prefix that transformers before 5.6 has."""
    return name.removeprefix("text_model.")


def encoder_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's published state, fp32, under the names that the installed transformers has for it."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        names = CLIPTextModel(CLIPTextConfig(**CONFIG)).state_dict()
    bare = {_bare(name): value.float() for name, value in published.items()}
    return {name: bare[_bare(name)] for name in names}
