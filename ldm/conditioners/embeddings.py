"""Precomputed embeddings, as retrieval-augmented models are conditioned (arXiv 2204.11824)."""

import torch
from torch import Tensor

from ldm.conditioners.base import Batch, Conditioner, field
from ldm.conditioners.projection import projection
from ldm.errors import UserError


class Embeddings(Conditioner):
    """batch["embeddings"] [B, N, embedding_width] -> tokens [B, N, width]; the null is zero, as published.

    They are the embeddings themselves, or, where `embedding_width` says that these are of another width than the
    tokens, a learned projection. For the published 768 px model: CLIP's of the text and of up to 20 neighbours.
    """

    key = "embeddings"

    def __init__(
        self, width: int = 768, num_tokens: int = 21, embedding_width: int | None = None, drop_prob: float = 0.1
    ):
        super().__init__({"tokens": width}, drop_prob, num_tokens)
        self.embedding_width = embedding_width or width
        self.project = projection(self.embedding_width, None if embedding_width is None else width)

    def check(self, batch: Batch) -> None:
        self._checked(batch[self.key])

    def _checked(self, tokens: Tensor) -> Tensor:
        if tokens.shape[-1] != self.embedding_width:
            raise UserError(
                f"embeddings {list(tokens.shape)}: this model takes them {self.embedding_width} wide; "
                f"conditioner.embeddings.embedding_width={tokens.shape[-1]} trains one for these"
            )
        return tokens

    def forward(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        if drop.all():
            tokens = torch.zeros(len(drop), self.num_tokens, self.embedding_width, device=drop.device)
            return {"tokens": self.project(tokens)}
        tokens = self._checked(field(batch, "embeddings", "embeddings").to(drop.device))
        return {"tokens": self.project(tokens.masked_fill(drop[:, None, None], 0.0))}
