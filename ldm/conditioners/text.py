"""Captions as the tokens of a frozen text encoder (cross-attention, arXiv 2112.10752, section 3.3)."""

import json
import logging
from collections.abc import Sequence
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.conditioners.base import Batch, Conditioner, FrozenEncoder, field
from ldm.conditioners.unread import Described
from ldm.errors import UserError
from ldm.networks.fingerprint import fingerprint
from ldm.networks.huggingface import load_model, load_tokenizer
from ldm.networks.layers import Frozen
from ldm.networks.pretrained import locate

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
    `see_padding` padding counts as words: there are always `max_tokens`. `name` is its conditioner's, for messages.
    """

    def __init__(
        self, model: nn.Module, tokenizer: object, max_tokens: int, see_padding: bool = False, name: str = "text"
    ):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.see_padding = see_padding
        self.name = name
        self.width = model.config.hidden_size
        self.num_cut = 0

    def read(self) -> "TextEncoder":
        """Itself, as it has been read."""
        return self

    @classmethod
    def load(cls, folder: Path, max_tokens: int, see_padding: bool = False, name: str = "text") -> "TextEncoder":
        """Read model and tokenizer from a local folder; nothing is downloaded."""
        key = f"conditioner.{name}.path"
        model = load_model(KINDS, folder, key, refusal=REFUSAL)
        limit = model.config.max_position_embeddings
        if not 2 < max_tokens <= limit:
            raise UserError(f"conditioner.{name}.max_tokens={max_tokens}: this encoder takes 3 to {limit}")
        return cls(model, load_tokenizer(folder, key), max_tokens, see_padding, name)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What its answers depend on."""
        words = json.dumps(sorted(self.tokenizer.get_vocab().items()))
        return {
            "model": type(self.model).__name__,
            "weights": fingerprint(self.model),
            "vocabulary": sha256(words.encode()).hexdigest()[:16],
            "max_tokens": self.max_tokens,
            "see_padding": self.see_padding,
        }

    @torch.no_grad()
    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B captions -> tokens [B, max_tokens, width] in fp32, zero where padded, and mask [B, max_tokens]."""
        captions = list(captions)
        self._count_cut(captions)
        if self.see_padding:
            return self._encode_all(captions)
        given = self.tokenizer(
            captions, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.model.device)
        with torch.autocast(self.model.device.type, enabled=False):
            hidden = self.model(input_ids=given.input_ids, attention_mask=given.attention_mask).last_hidden_state
        mask = given.attention_mask.bool()
        missing = self.max_tokens - mask.shape[1]  # the network's width is fixed, the encoder need not see the padding
        return F.pad(hidden.float() * mask[..., None], (0, 0, 0, missing)), F.pad(mask, (0, missing))

    def _encode_all(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        ids = self.tokenizer(captions, padding="max_length", truncation=True, max_length=self.max_tokens).input_ids
        with torch.autocast(self.model.device.type, enabled=False):
            hidden = self.model(input_ids=torch.tensor(ids, device=self.model.device)).last_hidden_state
        return hidden.float(), torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)

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


Memo = dict[str, tuple[Tensor, Tensor]]


class CaptionEncoder(FrozenEncoder):
    """A frozen encoder, its answers to the first `capacity` captions kept in `memo`.

    With a capacity captions are encoded one at a time, so that an embedding depends on its caption only.
    """

    key = "caption"

    def __init__(self, encoder: Described, capacity: int, memo: Memo | None = None):
        self.width = encoder.width
        self._described = encoder
        self._capacity = capacity
        self._memo = {} if memo is None else memo

    @cached_property
    def encoder(self) -> Frozen:
        """The encoder itself."""
        return Frozen(self._described.read())

    def identity(self) -> dict[str, Any]:
        """The encoder's."""
        return self._described.identity

    def encode(self, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        """The tokens [B, N, width] and the mask [B, N] of batch["caption"]."""
        captions = field(batch, "caption", self._described.name)
        tokens, mask = self(batch, torch.zeros(len(captions), dtype=torch.bool, device=device))
        return {"tokens": tokens, "mask": mask}

    def __call__(self, batch: Batch, drop: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, N, width] and mask [B, N] of batch["caption"], of '' where dropped."""
        known = self.known(batch)
        if known is not None:
            return self._with_null(known["tokens"].to(drop.device).float(), known["mask"].to(drop.device), drop)
        captions = [""] * len(drop)
        if not drop.all():
            given = field(batch, "caption", self._described.name)
            captions = ["" if dropped else text for text, dropped in zip(given, drop.tolist(), strict=True)]
        encoder = self.encoder.on(drop.device)
        if not self._capacity:
            return encoder(captions)
        new = {}
        for caption in dict.fromkeys(captions):
            if caption not in self._memo:
                tokens, mask = encoder([caption])
                new[caption] = (tokens[0].cpu(), mask[0].cpu())
        pairs = [new.get(caption) or self._memo[caption] for caption in captions]
        room = self._capacity - len(self._memo)
        self._memo.update(list(new.items())[: max(room, 0)])
        tokens, mask = (torch.stack(values).to(drop.device) for values in zip(*pairs, strict=True))
        return tokens, mask

    def _with_null(self, tokens: Tensor, mask: Tensor, drop: Tensor) -> tuple[Tensor, Tensor]:
        if not drop.any():
            return tokens, mask
        null, null_mask = (value.to(drop.device) for value in self._null)
        return torch.where(drop[:, None, None], null, tokens), torch.where(drop[:, None], null_mask, mask)

    @cached_property
    def _null(self) -> tuple[Tensor, Tensor]:
        """Of '', [1, N, width] and [1, N]: where everything else is known, the encoder stays on the device it is on."""
        return self.encoder.module([""])


class TextTokens(Conditioner):
    """batch["caption"], B texts -> tokens [B, N, width] and their mask; the null is the encoding of ''.

    The encoder is frozen and not saved.
    """

    key = "caption"

    def __init__(self, encoder: TextEncoder, drop_prob: float = 0.1, memo_captions: int = 0, memo: Memo | None = None):
        super().__init__("tokens", encoder.width, drop_prob)
        self.frozen = CaptionEncoder(encoder, memo_captions, memo)

    @property
    def encoder(self) -> TextEncoder:
        """The frozen encoder with its tokenizer."""
        return self.frozen.encoder.module

    def forward(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        tokens, mask = self.frozen(batch, drop)
        return {"tokens": tokens, "tokens_mask": mask}


class TextVector(Conditioner):
    """batch["caption"] -> the mean of its tokens as a vector [B, width] of unit variance; dropped with `text`."""

    key = "caption"

    def __init__(self, encoder: TextEncoder, drop_prob: float = 0.1, memo_captions: int = 0, memo: Memo | None = None):
        super().__init__("vector", encoder.width, drop_prob, drop_with="text")
        self.frozen = CaptionEncoder(encoder, memo_captions, memo)

    def forward(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        tokens, mask = self.frozen(batch, drop)
        mean = tokens.sum(1) / mask.sum(1, keepdim=True)
        return {"vector": F.layer_norm(mean, (self.width,))}


def text_tokens(
    model: str = "minilm",
    path: str | None = None,
    max_tokens: int = 16,
    drop_prob: float = 0.1,
    memo_captions: int = 0,
) -> TextTokens:
    """Text conditioning by a frozen encoder: a fetched one by name, or `path`, the folder of another (KINDS)."""
    return TextTokens(*_shared(model, path, max_tokens, drop_prob, memo_captions))


def text_vector(
    model: str = "minilm",
    path: str | None = None,
    max_tokens: int = 16,
    drop_prob: float = 0.1,
    memo_captions: int = 0,
) -> TextVector:
    """The pooled caption of the same encoders, added to the noise embedding; it shares encoder and memo with tokens."""
    return TextVector(*_shared(model, path, max_tokens, drop_prob, memo_captions))


def _shared(
    model: str, path: str | None, max_tokens: int, drop_prob: float, memo_captions: int
) -> tuple[TextEncoder, float, int, Memo]:
    folder = Path(path).expanduser() if path is not None else locate(model)
    encoder, memo = _load(folder, max_tokens)
    return encoder, drop_prob, memo_captions, memo


@cache
def _load(folder: Path, max_tokens: int) -> tuple[TextEncoder, Memo]:
    """One frozen encoder and one memo per process, however many conditioners and runs use them."""
    return TextEncoder.load(folder, max_tokens), {}
