"""Embeddings made beforehand, as retrieval-augmented models are conditioned (arXiv 2204.11824)."""

import torch
from torch import Tensor

from ldm.conditioners.base import Batch, Conditioner, field
from ldm.errors import UserError


class Embeddings(Conditioner):
    """batch["embeddings"] [B, N, width] -> these tokens; the null is zero, as published.

    For the published 768 px model: CLIP's embeddings of the text and of up to 20 neighbours.
    """

    key = "embeddings"

    def __init__(self, width: int = 768, num_tokens: int = 21, drop_prob: float = 0.1):
        super().__init__("tokens", width, drop_prob)
        self.num_tokens = num_tokens

    def forward(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        if drop.all():
            return {"tokens": torch.zeros(len(drop), self.num_tokens, self.width, device=drop.device)}
        tokens = field(batch, "embeddings", "embeddings").to(drop.device)
        if tokens.shape[-1] != self.width:
            raise UserError(f"embeddings {list(tokens.shape)}: conditioner.embeddings.width={self.width} is needed")
        return {"tokens": tokens.masked_fill(drop[:, None, None], 0.0)}
