"""Frozen encoders, as conditioners and caches of their outputs see them."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

Batch = Mapping[str, Any]


class FrozenEncoder(ABC):
    """An encoder that a conditioner uses and never trains. Its outputs for a batch may come with it, from a cache:
    batch["encoded"][`digest`], {part: [B, ...]}.
    """

    key: str  # the field of the batch that it reads

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What its outputs depend on, in words and numbers; "weights" is a hash."""

    @abstractmethod
    def encode(self, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        """Its outputs for a batch, {part: [B, ...]}, computed on `device`."""

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits of a hash of its identity."""
        return sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Its identity, with its digest."""
        return {"digest": self.digest, **self.identity()}

    def known(self, batch: Batch) -> Mapping[str, Tensor] | None:
        """Its outputs if they came with the batch."""
        return batch["encoded"].get(self.digest) if "encoded" in batch else None
