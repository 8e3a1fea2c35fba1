"""Conditioners of the numbers that a layout is told by (data.fields.Layout)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ldm.conditioners.base import CHECKED, Batch, Conditioner, field
from ldm.errors import UserError


class LayoutReader(Conditioner):
    """Reads batch["layout"] [B, count] of numbers below `vocabulary`, whose last, none, stands for no object.

    `name` is that of the conditioner, for messages, and `size` the key that sets how many numbers there are.
    """

    key = "layout"
    name: str
    size: str

    def __init__(self, widths: Mapping[str, int], drop_prob: float, num_tokens: int, count: int, vocabulary: int):
        super().__init__(widths, drop_prob, num_tokens)
        self.count, self.none = count, vocabulary - 1

    def sized(self, count: int) -> int:
        """The value of the key `size` for so many numbers."""
        return count

    def unfit(self, count: int, vocabulary: int) -> dict[str, int]:
        sizes = {} if count == self.count else {self.size: self.sized(count)}
        return sizes if vocabulary == self.none + 1 else {**sizes, "vocabulary": vocabulary}

    def check_values(self, batch: Batch) -> None:
        given = batch[self.key]
        if given.shape[1] != self.count or given.min() < 0 or given.max() > self.none:
            raise UserError(
                f"layout {list(given.shape)} of numbers up to {given.max().item()}: conditioner.{self.name} takes "
                f"{self.count} numbers in 0..{self.none}"
            )

    def numbers_of(self, batch: Batch, drop: Tensor) -> Tensor:
        """The layouts [B, count] of a batch, none everywhere in those that are dropped.

        Raises ValueError as `check_values` does, unless the batch says that it was looked at.
        """
        ids = torch.full((len(drop), self.count), self.none, device=drop.device)
        if drop.all():
            return ids
        given = field(batch, self.key, self.name).to(drop.device)
        if CHECKED not in batch:
            self.check_values(batch)
        return given.where(~drop[:, None], ids)
