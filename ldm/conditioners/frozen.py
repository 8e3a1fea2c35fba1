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
    """What a conditioner asks first and never trains. Its answers for a batch may come with it, from a cache of them:
    batch["encoded"][`digest`], {part: [B, ...]}.
    """

    key: str  # the field of the batch that it reads

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What its answers depend on, in words and numbers; "weights" is a hash."""

    @abstractmethod
    def encode(self, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        """Its answers for a batch, {part: [B, ...]}, made on `device`."""

    @cached_property
    def digest(self) -> str:
        """Its identity in sixteen digits."""
        return sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Its identity, with its digest."""
        return {"digest": self.digest, **self.identity()}

    def known(self, batch: Batch) -> Mapping[str, Tensor] | None:
        """Its answers if they came with the batch."""
        return batch["encoded"].get(self.digest) if "encoded" in batch else None
