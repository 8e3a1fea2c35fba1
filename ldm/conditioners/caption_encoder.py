"""Captions through a frozen text encoder, with the null of those that are dropped."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ldm.conditioners.base import field
from ldm.conditioners.drop import Drop
from ldm.conditioners.frozen import Batch, FrozenEncoder
from ldm.conditioners.lazy import Described
from ldm.conditioners.spans import Spans, spans_of
from ldm.conditioners.unread import tell_unread
from ldm.networks.layers import Frozen

PARTS = ("tokens", "mask", "pooled")  # of what an encoder gives, in order; the last not of all
Memo = dict[str, tuple[Tensor, ...]]


class CaptionEncoder(FrozenEncoder):
    """A frozen encoder whose outputs for the first `capacity` captions are kept in `memo`.

    They are its parts: tokens [B, N, width], their mask [B, N], and of some CLIP the text's vector, pooled
    [B, pooled_width]. With a capacity captions are encoded one at a time, so that an embedding depends on its caption
    only. The null is the encoding of '', or with `zero_null` zeros, none of them masked, which need no encoder.
    """

    key = "caption"

    def __init__(self, encoder: Described, capacity: int, memo: Memo | None = None, zero_null: bool = False):
        self.width = encoder.width
        self.max_tokens = encoder.max_tokens
        self.pooled_width = encoder.pooled_width
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
        """The parts for batch["caption"]."""
        captions = field(batch, "caption", self._described.name)
        return self(batch, torch.zeros(len(captions), dtype=torch.bool, device=device))

    def __call__(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        """{part: [B, ...]} for batch["caption"], the null where dropped."""
        if not self.zero_null:
            return self._encoded(batch, drop)
        if drop.all():
            return self._zeros(drop)
        found = self._encoded(batch, Drop.of(torch.zeros(len(drop), dtype=torch.bool)).to(drop.device))
        zeroed = {part: value.masked_fill(_beside(drop, value), 0) for part, value in found.items()}
        return {**zeroed, "mask": found["mask"] | drop[:, None]}

    def _zeros(self, drop: Tensor) -> dict[str, Tensor]:
        tokens = torch.zeros(len(drop), self.max_tokens, self.width, device=drop.device)
        found = {"tokens": tokens, "mask": torch.ones_like(tokens[..., 0], dtype=torch.bool)}
        return {**found, "pooled": tokens.new_zeros(len(drop), self.pooled_width)} if self.pooled_width else found

    def _encoded(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        """The parts as in `__call__`, with the encoding of '' where dropped."""
        known = self.known(batch)
        if known is not None:
            return self._with_null({part: _as_encoded(value.to(drop.device)) for part, value in known.items()}, drop)
        captions = [""] * len(drop)
        if not drop.all():
            given = field(batch, "caption", self._described.name)
            captions = ["" if dropped else text for text, dropped in zip(given, drop.tolist(), strict=True)]
        encoder = self.encoder.on(drop.device)
        if not self._capacity:
            return self._named(encoder(captions))
        new = {}
        for caption in dict.fromkeys(captions):
            if caption not in self._memo:
                new[caption] = tuple(value[0].cpu() for value in encoder([caption]))
        rows = [new.get(caption) or self._memo[caption] for caption in captions]
        room = self._capacity - len(self._memo)
        self._memo.update(list(new.items())[: max(room, 0)])
        stacked = [torch.stack(values) for values in zip(*rows, strict=True)]
        return self._named([value.to(drop.device, non_blocking=True) for value in stacked])

    def _named(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(PARTS, values, strict=False))

    def _with_null(self, known: dict[str, Tensor], drop: Tensor) -> dict[str, Tensor]:
        if not drop.any():
            return known
        null = {part: value.to(drop.device, non_blocking=True) for part, value in self._null.items()}
        return {part: torch.where(_beside(drop, value), null[part], value) for part, value in known.items()}

    @cached_property
    def _null(self) -> dict[str, Tensor]:
        """The parts of '', one row each; if all else is cached, the encoder is not moved to the device."""
        return self._named(self.encoder.module([""]))


def _beside(drop: Tensor, value: Tensor) -> Tensor:
    """drop [B] with a dimension of one for each other of value [B, ...]."""
    return drop.view(-1, *[1] * (value.ndim - 1))


def _as_encoded(value: Tensor) -> Tensor:
    """As encoders give it: numbers in fp32."""
    return value.float() if value.is_floating_point() else value
