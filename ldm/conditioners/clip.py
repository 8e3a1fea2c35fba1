"""CLIP's text tokens as Stable Diffusion v1 takes them, and its vector of the whole text, as eDiff-I takes it too."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ldm.conditioners.base import Batch, Conditioner
from ldm.conditioners.caption_encoder import CaptionEncoder
from ldm.conditioners.projection import projection
from ldm.conditioners.spans import Spans
from ldm.conditioners.text import KINDS, TextEncoder
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
# OpenCLIP's ViT-H/14 as Stable Diffusion 2 takes it, without the last of its 24 layers; '!' is its padding.
OPEN_CLIP: dict[str, Any] = {
    **CONFIG,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "projection_dim": 1024,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "pad_token_id": 0,
}
OPEN_CLIP_HEAD = 64  # channels of a head
CONFIGS = {"vit_l_14": CONFIG, "open_clip_h": OPEN_CLIP}
# Classes of transformers by model_type: of the tokens alone, and with the vector.
TOWERS = {**KINDS, "clip": "CLIPTextModel"}
TOWERS_WITH_VECTOR = dict.fromkeys(("clip", "clip_text_model"), "CLIPTextModelWithProjection")


class ClipText(Conditioner):
    """batch["caption"], B texts -> tokens [B, 77, 768], padding among them; the null is the encoding of ''.

    With `slots` [tokens, vector] also CLIP's vector of the whole text (`text_embeds`: the pooled state, projected), by
    the same draw: eDiff-I adds it to the noise embedding (arXiv 2211.01324, section 4.1). Of Stable Diffusion 2's
    encoder the tokens are 1024 wide. With `width` they are brought to it by a learned projection; with `zero_null` the
    null is zeros. `path` is a folder with the encoder, or with a whole CLIP, which is frozen and not saved; None (or
    '???') is the one of published weights, `model`, which alone is described then, and has no vector.
    """

    key = "caption"
    frozen: CaptionEncoder | None

    def __init__(
        self,
        path: str | None,
        width: int | None = None,
        zero_null: bool = False,
        drop_prob: float = 0.1,
        memo_captions: int = 0,
        model: Literal["vit_l_14", "open_clip_h"] = "vit_l_14",
        slots: Sequence[Literal["tokens", "vector"]] = ("tokens",),
    ):
        frozen = None
        if path not in (None, "???"):
            encoder = _encoder(Path(path).expanduser(), "vector" in slots)
            frozen = CaptionEncoder(encoder, memo_captions, zero_null=zero_null)
        elif "vector" in slots:
            raise UserError("conditioner.clip_text.slots: the vector needs path=, a folder with a CLIP")
        encoder_width = frozen.width if frozen else CONFIGS[model]["hidden_size"]
        widths = {"tokens": width or encoder_width, "vector": frozen.pooled_width if frozen else 0}
        super().__init__({slot: widths[slot] for slot in slots}, drop_prob, MAX_TOKENS if "tokens" in slots else 0)
        self.frozen = frozen
        self._config = CONFIGS[model]
        self.project = projection(encoder_width, width if "tokens" in slots else None)

    @property
    def encoder(self) -> TextEncoder:
        """The frozen encoder with its tokenizer."""
        return cast(TextEncoder, self.frozen.encoder.module)

    def check(self, batch: Batch) -> None:
        if self.frozen is not None:
            self.frozen.check(batch)

    def spans(self, text: str) -> Spans | None:
        return self.frozen.spans(text) if self.frozen is not None and "tokens" in self.widths else None

    def forward(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        given = self.frozen(batch, drop)
        filled: dict[str, Tensor] = {}
        if "tokens" in self.widths:
            filled |= {"tokens": self.project(given["tokens"]), "tokens_mask": given["mask"]}
        if "vector" in self.widths:
            filled["vector"] = given["pooled"]
        return filled

    def published_state(self) -> dict[str, Tensor]:
        if "vector" in self.widths:
            raise UserError("conditioner.clip_text.slots: published models have no vector of the text")
        if self.state_dict():
            raise UserError("conditioner.clip_text.width: published models have no projection of tokens")
        if self._config is not CONFIG:
            raise UserError(
                "conditioner.clip_text.model=open_clip_h: the published layout of Stable Diffusion 2 is read and not "
                "written; export format=diffusers"
            )
        if self.frozen is None:
            return layout()
        state = self.frozen.encoder.module.model.state_dict()
        return {published_name(name): value for name, value in state.items()}


@cache
def _encoder(folder: Path, pooled: bool) -> TextEncoder:
    """One frozen encoder per process, however many models use it."""
    kinds = TOWERS_WITH_VECTOR if pooled else TOWERS
    return TextEncoder.load(folder, MAX_TOKENS, see_padding=True, name="clip_text", kinds=kinds, pooled=pooled)


def layout(config: Mapping[str, Any] = CONFIG) -> dict[str, Tensor]:
    """The encoder's state under the names of the published files, on the meta device."""
    from transformers import CLIPTextConfig, CLIPTextModel  # imported here: seconds that only its users pay

    with torch.device("meta"):
        state = CLIPTextModel(CLIPTextConfig(**config)).state_dict()
    return {published_name(name): value for name, value in state.items()}


def published_name(name: str) -> str:
    """A weight's name below the conditioner in the published files."""
    return f"transformer.text_model.{_bare(name)}"


def _bare(name: str) -> str:
    """Without the prefix that transformers before 5.6 has."""
    return name.removeprefix("text_model.")


def encoder_state(published: Mapping[str, Tensor], config: Mapping[str, Any] = CONFIG) -> dict[str, Tensor]:
    """The encoder's published state, fp32, under the names that the installed transformers has for it."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        names = CLIPTextModel(CLIPTextConfig(**config)).state_dict()
    bare = {_bare(name): value.float() for name, value in published.items()}
    return {name: bare[_bare(name)] for name in names}
