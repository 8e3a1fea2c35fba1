"""Held-out losses of a model and of the one that it came from over ln(sigma), as rows and as a figure."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ldm.diffusion.boundaries import Interval, equal_shares
from ldm.diffusion.noise import MIN_MASS, NoiseDistribution, Restricted
from ldm.drawer import Drawer
from ldm.evaluation.interval_loss import HeldOut, gain, interval_loss

Row = dict[str, Any]
Measure = Callable[[Sequence[Interval], int], Row]  # inside of intervals, at so many levels of noise
LEVELS = 4  # of noise at which a held-out image is measured in a bin, and twice as many in an interval
WHOLE = [(0.0, math.inf)]


def measure(child: Drawer, parent: Drawer, seen: HeldOut, noise: NoiseDistribution, seed: int) -> Measure:
    """What gives the losses of both for intervals of sigma, from the same draws of `noise`."""

    def measured(intervals: Sequence[Interval], num_levels: int) -> Row:
        inside = noise if list(intervals) == WHOLE else Restricted(noise, intervals)
        of, over = (interval_loss(model, seen, inside, seed, num_levels) for model in (child, parent))
        found = gain(of, over, seen.captions)
        return {"parent_loss": found["over"], "loss": found["loss"], "gain": found["gain"],
                "half_interval": found["half_interval"]}  # fmt: skip

    return measured


def over_sigma(measured: Measure, noise: NoiseDistribution, intervals: Sequence[Interval], num_bins: int) -> list[Row]:
    """Rows for `num_bins` shares of equally likely `noise` inside `intervals` (ascending), lowest first: `sigma` and
    `ln_sigma`, its middle, `parent_loss`, `loss`, and `gain` with `half_interval`, half its 95 % interval.

    Bins that are empty under a discrete noise are left out.
    """
    inside = noise if list(intervals) == WHOLE else Restricted(noise, intervals)
    middles = inside.icdf((torch.arange(num_bins, dtype=torch.float64) + 0.5) / num_bins).tolist()
    rows = []
    for (low, high), middle in zip(equal_shares(inside, num_bins), middles, strict=True):
        parts = [(max(low, start), min(high, stop)) for start, stop in intervals]
        parts = [part for part in parts if part[0] < part[1] and holds(noise, part)]
        if parts:
            rows.append({"sigma": middle, "ln_sigma": math.log(middle), **measured(parts, LEVELS)})
    return rows


def holds(noise: NoiseDistribution, interval: Interval) -> bool:
    """Whether enough of the noise is in an interval to be drawn from."""
    low, high = noise.below(torch.tensor(interval, dtype=torch.float64)).tolist()
    return bool(high - low >= MIN_MASS)


def loses(row: Row) -> bool:
    """Whether the child is worse there by more than the interval."""
    return bool(row["gain"] < -row["half_interval"])


def draw(path: Path, rows: Sequence[Row], child: str) -> Path:
    """Both losses over ln(sigma), and below them their difference with its intervals."""
    figure = Figure(figsize=(6, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True)
    x = [row["ln_sigma"] for row in rows]
    top.plot(x, [row["parent_loss"] for row in rows], "o-", label="parent")
    top.plot(x, [row["loss"] for row in rows], "s--", label=child)
    top.set(ylabel="held-out loss")
    top.legend()
    halves = [row["half_interval"] if math.isfinite(row["half_interval"]) else 0.0 for row in rows]
    bottom.errorbar(x, [row["gain"] for row in rows], halves, fmt="o", capsize=3)
    bottom.axhline(0, color="black", linewidth=0.8)
    bottom.set(xlabel="ln(sigma)", ylabel="gain")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})
    return path
