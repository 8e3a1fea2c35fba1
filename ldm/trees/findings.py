"""What the rows of several training seeds say together: means, differences with 95 % intervals, and a verdict."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ldm.sweep.intervals import interval

Row = dict[str, Any]
UP = ("accuracy", "alignment_score/", "clip_score/")  # quantities of which more is better


@dataclass(frozen=True)
class Difference:
    """A mean over training seeds with half its 95 % interval by Student's t, infinite for one seed."""

    mean: float
    half: float
    seeds: int

    def sign(self) -> int:
        """-1 or 1 where the interval lies on one side of 0, else 0."""
        return 0 if abs(self.mean) <= self.half else 1 if self.mean > 0 else -1

    def __str__(self) -> str:
        half = f" ± {self.half:.2g}" if self.half < float("inf") else ", one seed: no interval"
        return f"{self.mean:+.4g}{half}"


def value(rows: Sequence[Row], seed: int, system: str, quantity: str, scale: float | None = None) -> float | None:
    """The mean of a training seed over its sampling seeds, and over all scales or the one given; None without rows."""
    found = [
        row["value"]
        for row in rows
        if (row["seed"], row["system"], row["quantity"]) == (seed, system, quantity)
        and scale in (None, row.get("scale"))
    ]
    return sum(found) / len(found) if found else None


def mean(rows: Sequence[Row], system: str, quantity: str, scale: float | None = None) -> Difference | None:
    """Over the training seeds that have it."""
    values = [value(rows, seed, system, quantity, scale) for seed in seeds_of(rows)]
    return _over([one for one in values if one is not None])


def difference(
    rows: Sequence[Row], system: str, against: str, quantity: str, scale: float | None = None
) -> Difference | None:
    """Of `system` less `against`, paired by training seed."""
    found = []
    for seed in seeds_of(rows):
        own, other = (value(rows, seed, name, quantity, scale) for name in (system, against))
        if own is not None and other is not None:
            found.append(own - other)
    return _over(found)


def _over(values: list[float]) -> Difference | None:
    return Difference(*interval(values), len(values)) if values else None


def seeds_of(rows: Sequence[Row]) -> list[int]:
    """The training seeds."""
    return sorted({row["seed"] for row in rows})


def sampled(rows: Sequence[Row]) -> list[str]:
    """The quantities of samples: a distance first, then what says whether they are what was asked for."""
    return sorted(
        {row["quantity"] for row in rows if row.get("scale") is not None}, key=lambda name: name.startswith(UP)
    )


def verdict(rows: Sequence[Row], seeds: Sequence[int], system: str = "four", control: str = "control") -> list[str]:
    """A sentence on each quantity: whether `system` is better than `control` at equal samples, or worse, or neither.

    Of samples the mean over scales and sampling seeds, of losses that over all of the noise.
    """
    missing = sorted(set(seeds) - set(seeds_of(rows)))
    if missing:
        return [f"Not yet judged: training seeds {', '.join(map(str, missing))} are missing."]
    said = []
    for quantity in [*sampled(rows), "loss"]:
        found = difference(rows, system, control, quantity)
        if found is None:
            continue
        better = 1 if quantity.startswith(UP) else -1
        words = {better: "better than", -better: "worse than", 0: "not told apart from"}[found.sign()]
        said.append(f"{quantity}: {system} is {words} {control}, {found}.")
    return said
