"""Learned tokens that are always there: what cross-attention sees where everything else is dropped or masked."""

import torch
from torch import Tensor, nn

from ldm.conditioners.base import Batch, Conditioner


class NullToken(Conditioner):
    """Nothing of the batch -> the same learned tokens [B, num_tokens, width] for every sample, never dropped."""

    key = None

    def __init__(self, width: int, num_tokens: int = 1):
        super().__init__({"tokens": width}, drop_prob=0.0, num_tokens=num_tokens)
        self.tokens = nn.Parameter(torch.randn(num_tokens, width))

    def forward(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        return {"tokens": self.tokens.expand(len(drop), -1, -1)}
