"""Several data sets mixed by weight, as one endless order: a pure function of the sample number, in O(1) memory.

The run's numbers are cut into periods of `PERIOD` or a little less. In each period every set has its own number of
slots, in an order drawn for the period; a set's slots count through its own epochs, whatever the others' are.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import lcm

import numpy as np

from ldm.data.plan import Plan, permute

PERIOD = 1000


class Mixture:
    """The order of sets that lie one after the other under one running index, as `Plan` is that of one set.

    `sizes` and `weights` are the sets' numbers of samples and their shares of the run, by name.
    """

    def __init__(
        self, sizes: Mapping[str, int], weights: Mapping[str, float], seed: int, shuffle_block: int | None = None
    ):
        self.num_samples = sum(sizes.values())
        self.seed = seed
        self.shares = np.array(slots([weights[name] for name in sizes]))
        self.period = int(self.shares.sum())
        self._starts = np.cumsum([0, *sizes.values()])[:-1]
        self._owner = np.repeat(np.arange(len(sizes)), self.shares)  # of each slot, before the period's permutation
        self._plans = [Plan(size, seed, shuffle_block, f"order of {name}") for name, size in sizes.items()]

    def indices(self, numbers: np.ndarray) -> np.ndarray:
        """Sample numbers of the run, int64 [n] -> indices of samples, int64 [n]."""
        sets, places = self.places(numbers)
        indices = np.empty_like(places)
        for own in np.unique(sets):
            here = sets == own
            indices[here] = self._starts[own] + self._plans[own].indices(places[here])
        return indices

    def successor(self, number: int, steps: int) -> int:
        """The index `steps` places after `number` in its own set's epoch, which closes to a ring."""
        [own], [place] = self.places(np.array([number]))
        return int(self._starts[own]) + self._plans[own].successor(int(place), steps)

    def places(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each number, the set it is taken from and how many were taken from that set before; int64 [n] each."""
        periods, within = np.divmod(np.asarray(numbers, dtype=np.int64), self.period)
        sets, places = np.empty_like(periods), np.empty_like(periods)
        for period in np.unique(periods):
            here = within[periods == period]
            owner = self._owner[permute(np.arange(self.period), self.period, f"{self.seed}/mixture/{period}")]
            before = np.empty(self.period, np.int64)
            for own, share in enumerate(self.shares):
                before[owner == own] = period * share + np.arange(share)
            sets[periods == period], places[periods == period] = owner[here], before[here]
        return sets, places


def slots(weights: Sequence[float]) -> list[int]:
    """Slots of each set in a period: in the exact proportion of the weights if some number up to PERIOD allows it,
    else to the nearest of PERIOD parts, at least one each.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    parts = lcm(*(share.denominator for share in shares))
    if parts <= PERIOD:
        return [int(share * (PERIOD // parts * parts)) for share in shares]
    rounded = [max(1, int(share * PERIOD)) for share in shares]
    while sum(rounded) > PERIOD and max(rounded) > 1:  # what small sets got too much, the largest gives
        rounded[rounded.index(max(rounded))] -= 1
    rest = max(PERIOD - sum(rounded), 0)
    missing = sorted(range(len(shares)), key=lambda i: rounded[i] - shares[i] * PERIOD)
    return [count + (i in missing[:rest]) for i, count in enumerate(rounded)]
