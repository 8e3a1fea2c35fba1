"""The numbers that a layout is told by (data.fields.Layout), as conditioners read them."""

from typing import Any

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


def check_layout(source: Any, count: int, none: int, name: str, size: str) -> None:
    """Raise ValueError unless a data.fields.Layout gives `count` numbers, of which `none` is no object.

    `size` is the key of conditioner `name` that sets the count. A field of another class knows what it gives.
    """
    if not (hasattr(source, "max_objects") and hasattr(source, "none")):
        return
    given = 3 * source.max_objects + 2
    if (given, source.none) != (count, none):
        sizes = {"max_objects": source.max_objects, "num_tokens": given}
        raise UserError(
            f"conditioner.{name}: reads {count} numbers in 0..{none}, the last for no object, and data.fields.layout "
            f"gives {given} in 0..{source.none}; set conditioner.{name}.vocabulary={source.none + 1} "
            f"conditioner.{name}.{size}={sizes[size]}"
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
