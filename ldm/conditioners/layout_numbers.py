"""The numbers that a layout is told by (data.fields.Layout), as conditioners read them."""

import torch
from torch import Tensor

from ldm.conditioners.base import CHECKED, Batch, field
from ldm.errors import UserError


def check_numbers(given: Tensor, count: int, none: int, name: str) -> None:
    """Raise ValueError for layouts that are not [B, count] of numbers in 0..none, as conditioner `name` takes them."""
    if given.shape[1] != count or given.min() < 0 or given.max() > none:
        raise UserError(
            f"layout {list(given.shape)} of numbers up to {given.max().item()}: conditioner.{name} takes {count} "
            f"numbers in 0..{none}"
        )


def numbers_of(batch: Batch, drop: Tensor, count: int, none: int, name: str) -> Tensor:
    """The layouts [B, count] that conditioner `name` reads, `none` everywhere in those that are dropped.

    Raises ValueError as `check_numbers` does, unless the batch says that it was looked at.
    """
    ids = torch.full((len(drop), count), none, device=drop.device)
    if drop.all():
        return ids
    given = field(batch, "layout", name).to(drop.device)
    if CHECKED not in batch:
        check_numbers(given, count, none, name)
    return given.where(~drop[:, None], ids)
