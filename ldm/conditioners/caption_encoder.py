"""Captions through a frozen text encoder, with the null of those that are dropped."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ldm.conditioners.base import field
from ldm.conditioners.frozen import Batch, FrozenEncoder
from ldm.conditioners.lazy import Described
from ldm.conditioners.spans import Spans, spans_of
from ldm.conditioners.unread import tell_unread
from ldm.networks.layers import Frozen

Memo = dict[str, tuple[Tensor, Tensor]]


class CaptionEncoder(FrozenEncoder):
    """A frozen encoder whose outputs for the first `capacity` captions are kept in `memo`.

    With a capacity captions are encoded one at a time, so that an embedding depends on its caption only. The null is
    the encoding of '', or with `zero_null` zeros, none of them masked, which need no encoder.
    """

    key = "caption"

    def __init__(self, encoder: Described, capacity: int, memo: Memo | None = None, zero_null: bool = False):
        self.width = encoder.width
        self.max_tokens = encoder.max_tokens
        self.zero_null = zero_null
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

    def check(self, batch: Batch) -> None:
        """Say what of batch["caption"] is longer than the encoder reads."""
        encoder = self.encoder.module
        key = f"conditioner.{self._described.name}.max_tokens"
        tell_unread(encoder.tokenizer, batch["caption"], self.max_tokens, key)

    def spans(self, text: str) -> Spans:
        """Which characters of a text each of the tokens stands for."""
        return spans_of(self.encoder.module.tokenizer, text, self.max_tokens)

    def encode(self, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        """The tokens [B, N, width] and the mask [B, N] of batch["caption"]."""
        captions = field(batch, "caption", self._described.name)
        tokens, mask = self(batch, torch.zeros(len(captions), dtype=torch.bool, device=device))
        return {"tokens": tokens, "mask": mask}

    def __call__(self, batch: Batch, drop: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, N, width] and mask [B, N] of batch["caption"], the null where dropped."""
        if not self.zero_null:
            return self._encoded(batch, drop)
        if drop.all():
            tokens = torch.zeros(len(drop), self.max_tokens, self.width, device=drop.device)
            return tokens, torch.ones_like(tokens[..., 0], dtype=torch.bool)
        tokens, mask = self._encoded(batch, torch.zeros_like(drop))
        return tokens.masked_fill(drop[:, None, None], 0.0), mask | drop[:, None]

    def _encoded(self, batch: Batch, drop: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and mask as in `__call__`, with the encoding of '' where dropped."""
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
        """Tokens [1, N, width] and mask [1, N] of ''; if all else is cached, the encoder is not moved to the device."""
        return self.encoder.module([""])
