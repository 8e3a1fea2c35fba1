"""Intervals of 95 %: of a mean by bootstrap, of a share of answers by Wilson's formula."""

from collections.abc import Sequence
from math import isnan
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

LEVEL = 0.95
RESAMPLES = 10_000
MAX_DRAWS = 1 << 20  # at once


class Estimate(NamedTuple):
    """A value and the ends of its interval; NaN where there are too few to tell."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        shown = f"{self.value:.3f}"
        return shown if isnan(self.low) else f"{shown} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_mean(values: Sequence[float] | np.ndarray, seed: int = 0) -> Estimate:
    """The mean of `values` [N], and the percentile interval of it over resamples; without one below two values."""
    found = np.asarray(values, dtype=np.float64)
    if len(found) < 2:
        return Estimate(float(found.mean()), float("nan"), float("nan"))
    generator = np.random.default_rng(seed)
    at_once = max(1, MAX_DRAWS // len(found))
    means = [
        found[generator.integers(len(found), size=(min(at_once, RESAMPLES - start), len(found)))].mean(1)
        for start in range(0, RESAMPLES, at_once)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(found.mean()), float(low), float(high))


def wilson(count: int, total: int) -> Estimate:
    """A share of `count` in `total` answers (Wilson 1927)."""
    if not total:
        return Estimate(float("nan"), float("nan"), float("nan"))
    interval = binomtest(count, total).proportion_ci(LEVEL, "wilson")
    return Estimate(count / total, float(interval.low), float(interval.high))
