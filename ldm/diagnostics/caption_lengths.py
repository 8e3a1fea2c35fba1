"""Captions in parts by their number of words: what eDiff-I tells its two data sets apart by."""

import statistics
from collections.abc import Sequence

from torch import Tensor

from ldm.errors import UserError

ALL = "all"


def num_words(caption: str) -> int:
    """Of a caption, parted at spaces."""
    return len(caption.split())


class LengthParts:
    """All captions, and those of up to so many words as each of `limits`, and of more: {name: [N] bool} by `of`.

    Without limits they are parted at the median of `lengths`, those of that length being short. The names are "all",
    "up to 8 words", "9 to 20 words", "from 21 words".
    """

    def __init__(self, lengths: Sequence[int], limits: Sequence[int] | None):
        if limits is None:
            half = int(statistics.median_low(lengths))
            limits = [half] if half < max(lengths) else []
        elif list(limits) != sorted(set(limits)) or any(limit < 1 for limit in limits):
            raise UserError(f"words={list(limits)}: numbers of words that rise, from 1 on")
        self.bounds = list(zip([1, *(limit + 1 for limit in limits)], [*limits, None], strict=True)) if limits else []

    @property
    def names(self) -> list[str]:
        """Of all, and of each part from the shortest on."""
        return [ALL, *(_name(low, high) for low, high in self.bounds)]

    def of(self, lengths: Tensor) -> dict[str, Tensor]:
        """Which of captions of `lengths` [N] are in each."""
        parts = {_name(low, high): (lengths >= low) & (lengths <= (high or lengths.max())) for low, high in self.bounds}
        return {ALL: lengths >= 0, **parts}


def _name(low: int, high: int | None) -> str:
    if high is None:
        return f"from {low} words"
    return f"up to {high} words" if low == 1 else f"{low} to {high} words"
