"""A frozen encoder's outputs kept in memory by the index of their sample, so that a small data set is encoded once.

Each sample is encoded by itself: its value then depends on nothing but the sample, so a resumed run sees the same bits.
"""

from collections.abc import Callable

import torch
from torch import Tensor


class Memo:
    """Remember `encode` for up to `capacity` samples; beyond that (or with capacity 0) it just computes the batch."""

    def __init__(self, encode: Callable[[Tensor], Tensor], capacity: int):
        self.encode = encode
        self.capacity = capacity
        self._kept: dict[int, Tensor] = {}

    def __call__(self, images: Tensor, index: Tensor) -> Tensor:
        """Codes of `images` [B, C, H, W], whose samples have data set indices `index` [B]."""
        keys = index.tolist() if self.capacity else []
        for place, key in enumerate(keys):
            if key not in self._kept and len(self._kept) < self.capacity:
                self._kept[key] = self.encode(images[place : place + 1])[0]
        if keys and all(key in self._kept for key in keys):
            return torch.stack([self._kept[key] for key in keys])
        return self.encode(images)
