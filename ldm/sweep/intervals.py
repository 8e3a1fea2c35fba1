"""What seeds say together: 95 % intervals of their mean, and whether the ends of a sweep are worse than its best."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t

from ldm.errors import UserError


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of `values` and half the width of its 95 % interval by Student's t; infinite for a single value."""
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return mean, math.inf
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, float(t.ppf(0.975, count - 1)) * math.sqrt(variance / count)


@dataclass(frozen=True)
class Verdict:
    """The f with the lowest mean, and which ends are worse than it with intervals that do not meet."""

    best: int
    worse: dict[int, bool]  # end -> whether
    inside: bool  # the best f is no end

    @property
    def holds(self) -> bool:
        """The best f lies strictly between the ends, and both are worse with disjoint intervals."""
        return self.inside and all(self.worse.values())


def ends_are_worse(values: Mapping[int, Sequence[float]]) -> Verdict:
    """The verdict on f -> a value of each seed, of a quality of which less is better; at least three f.

    Raises UserError for fewer.
    """
    if len(values) < 3:
        raise UserError(f"{len(values)} f have no f between the ends")
    found = {f: interval(own) for f, own in values.items()}
    best = min(found, key=lambda f: found[f][0])
    top = sum(found[best])
    worse = {f: f != best and found[f][0] - found[f][1] > top for f in (min(values), max(values))}
    return Verdict(best, worse, best not in worse)
