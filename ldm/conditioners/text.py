"""Captions by a frozen text encoder: tokens for cross-attention (arXiv 2112.10752, section 3.3) and their mean."""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.conditioners.base import Batch, Conditioner
from ldm.conditioners.caption_encoder import CaptionEncoder, Memo
from ldm.conditioners.projection import projection
from ldm.conditioners.spans import Spans
from ldm.errors import UserError
from ldm.networks.downloads import locate
from ldm.networks.fingerprint import fingerprint
from ldm.networks.huggingface import load_model, load_tokenizer

log = logging.getLogger(__name__)

# Encoders of transformers by their model_type; no other class of it is made of a folder's files.
KINDS = {
    "albert": "AlbertModel", "bert": "BertModel", "camembert": "CamembertModel", "clip_text_model": "CLIPTextModel",
    "deberta": "DebertaModel", "deberta-v2": "DebertaV2Model", "distilbert": "DistilBertModel",
    "electra": "ElectraModel", "ernie": "ErnieModel", "mobilebert": "MobileBertModel", "modernbert": "ModernBertModel",
    "mpnet": "MPNetModel", "roberta": "RobertaModel", "roberta-prelayernorm": "RobertaPreLayerNormModel",
    "squeezebert": "SqueezeBertModel", "xlm-roberta": "XLMRobertaModel",
}  # fmt: skip
REFUSAL = f"is none of {', '.join(KINDS)}; of those with a decoder conditioner=[t5] takes T5, mT5 and UMT5"


class TextEncoder(nn.Module):
    """A Hugging Face encoder with its tokenizer: captions -> `max_tokens` tokens each, `width` wide.

    `model(input_ids, attention_mask).last_hidden_state` is used; `tokenizer` pads and cuts. With
    `see_padding` padding counts as words: there are always `max_tokens`. With `pooled` the model's `text_embeds` are
    given too (CLIP's text vector, of `pooled_width`). `name` is its conditioner's, for messages.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        max_tokens: int,
        see_padding: bool = False,
        name: str = "text",
        pooled: bool = False,
    ):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.see_padding = see_padding
        self.name = name
        self.width = model.config.hidden_size
        self.pooled_width = model.config.projection_dim if pooled else 0
        self.num_cut = 0

    def read(self) -> "TextEncoder":
        """Itself: it is loaded already."""
        return self

    @classmethod
    def load(
        cls,
        folder: Path,
        max_tokens: int,
        see_padding: bool = False,
        name: str = "text",
        kinds: Mapping[str, str] = KINDS,
        pooled: bool = False,
    ) -> "TextEncoder":
        """Read model and tokenizer from a local folder; nothing is downloaded."""
        key = f"conditioner.{name}.path"
        model = load_model(kinds, folder, key, refusal=REFUSAL)
        limit = model.config.max_position_embeddings
        if not 2 < max_tokens <= limit:
            raise UserError(f"conditioner.{name}.max_tokens={max_tokens}: this encoder takes 3 to {limit}")
        return cls(model, load_tokenizer(folder, key), max_tokens, see_padding, name, pooled)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What its outputs depend on."""
        words = json.dumps(sorted(self.tokenizer.get_vocab().items()))
        return {
            "model": type(self.model).__name__,
            "weights": fingerprint(self.model),
            "vocabulary": sha256(words.encode()).hexdigest()[:16],
            "max_tokens": self.max_tokens,
            "see_padding": self.see_padding,
        }

    @torch.no_grad()
    def forward(self, captions: Sequence[str]) -> tuple[Tensor, ...]:
        """B captions -> tokens [B, max_tokens, width] in fp32, zero where padded, their mask [B, max_tokens] and, if
        asked for, pooled [B, pooled_width].
        """
        captions = list(captions)
        self._count_cut(captions)
        if self.see_padding:
            return self._encode_all(captions)
        given = self.tokenizer(
            captions, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.model.device, non_blocking=True)
        with torch.autocast(self.model.device.type, enabled=False):
            found = self.model(input_ids=given.input_ids, attention_mask=given.attention_mask)
        hidden = found.last_hidden_state
        mask = given.attention_mask.bool()
        missing = self.max_tokens - mask.shape[1]  # the network's width is fixed, the encoder need not see the padding
        tokens = F.pad(hidden.float() * mask[..., None], (0, 0, 0, missing))
        return self._given(tokens, F.pad(mask, (0, missing)), found)

    def _encode_all(self, captions: list[str]) -> tuple[Tensor, ...]:
        ids = self.tokenizer(captions, padding="max_length", truncation=True, max_length=self.max_tokens).input_ids
        with torch.autocast(self.model.device.type, enabled=False):
            found = self.model(input_ids=torch.tensor(ids).to(self.model.device, non_blocking=True))
        hidden = found.last_hidden_state
        return self._given(hidden.float(), torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device), found)

    def _given(self, tokens: Tensor, mask: Tensor, found: Any) -> tuple[Tensor, ...]:
        return (tokens, mask, found.text_embeds.float()) if self.pooled_width else (tokens, mask)

    def _count_cut(self, captions: list[str]) -> None:
        lengths = [len(ids) for ids in self.tokenizer(captions, verbose=False).input_ids]
        cut = sum(length > self.max_tokens for length in lengths)
        before, self.num_cut = self.num_cut, self.num_cut + cut
        if cut and self.num_cut.bit_length() > before.bit_length():  # at 1, 2, 4, 8, ...
            longest = captions[lengths.index(max(lengths))]
            log.warning(
                "%d captions so far are longer than conditioner.%s.max_tokens=%d and were cut, such as %r",
                self.num_cut,
                self.name,
                self.max_tokens,
                longest[:80],
            )


class FrozenText(Conditioner):
    """batch["caption"], B texts -> tokens [B, N, width] and their mask, their mean as a vector [B, V], or both.

    The vector is as wide as the encoder, V, and of unit variance; with `width` the tokens are brought to it by a
    learned projection. The null is the encoder's. The encoder is frozen and not saved.
    """

    key = "caption"
    frozen: CaptionEncoder

    def __init__(
        self,
        encoder: CaptionEncoder,
        slots: Sequence[str] = ("tokens",),
        width: int | None = None,
        drop_prob: float = 0.1,
    ):
        widths = {"tokens": width or encoder.width, "vector": encoder.width}
        num_tokens = encoder.max_tokens if "tokens" in slots else 0
        super().__init__({slot: widths[slot] for slot in slots}, drop_prob, num_tokens)
        self.frozen = encoder
        self.project = projection(encoder.width, width if "tokens" in slots else None)

    def check(self, batch: Batch) -> None:
        self.frozen.check(batch)

    def spans(self, text: str) -> Spans | None:
        return self.frozen.spans(text) if "tokens" in self.widths else None

    def forward(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        given = self.frozen(batch, drop)
        tokens, mask = given["tokens"], given["mask"]
        filled: dict[str, Tensor] = {}
        if "tokens" in self.widths:
            filled |= {"tokens": self.project(tokens), "tokens_mask": mask}
        if "vector" in self.widths:
            mean = tokens.sum(1) / mask.sum(1, keepdim=True)
            filled["vector"] = F.layer_norm(mean, (self.frozen.width,))
        return filled


def frozen_text(
    model: str = "minilm",
    path: str | None = None,
    max_tokens: int = 16,
    slots: Sequence[Literal["tokens", "vector"]] = ("tokens",),
    width: int | None = None,
    zero_null: bool = False,
    drop_prob: float = 0.1,
    memo_captions: int = 0,
) -> FrozenText:
    """Text conditioning by a frozen encoder: a fetched one by name, or `path`, the folder of another (KINDS)."""
    folder = Path(path).expanduser() if path is not None else locate(model)
    encoder, memo = _load(folder, max_tokens)
    return FrozenText(CaptionEncoder(encoder, memo_captions, memo, zero_null), slots, width, drop_prob)


@cache
def _load(folder: Path, max_tokens: int) -> tuple[TextEncoder, Memo]:
    """One frozen encoder and one memo per process, however many conditioners and runs use them."""
    return TextEncoder.load(folder, max_tokens), {}
