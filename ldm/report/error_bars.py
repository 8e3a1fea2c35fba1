"""Means with their intervals over a quantity that doubles from one to the next, such as f."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from ldm.errors import UserError
from ldm.report.canvas import draw, label, legend
from ldm.report.plots import LINES, MARKERS
from ldm.report.theme import Theme


def error_bars(
    path: Path | str,
    models: Mapping[str, Sequence[tuple[float, float, float]]],
    *,
    x_label: str,
    y_label: str,
) -> Path:
    """Curves {name: [(x, mean, half of its interval)]}, x logarithmic to base 2; lower is better."""
    if not models:
        raise UserError("error_bars needs at least one curve")
    for name, points in models.items():
        if not points or not all(math.isfinite(value) for point in points for value in point):
            raise UserError(f"curve {name!r}: its points must be finite, and at least one")

    def paint(axes: Axes, theme: Theme) -> None:
        entries = {}
        for place, (name, points) in enumerate(models.items()):
            across, means, halves = zip(*sorted(points), strict=True)
            color, marker = theme.series[place % len(theme.series)], MARKERS[place % len(MARKERS)]
            line, *_ = axes.errorbar(
                across, means, halves, fmt=LINES[place % len(LINES)], capsize=4, color=color, marker=marker,
                markeredgecolor=theme.surface,
            )  # fmt: skip
            entries[name] = line
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({x for points in models.values() for x, _, _ in points}))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        label(axes, theme, x_label, f"{y_label} (lower is better)")
        legend(axes, entries)

    return draw(path, 425, paint, models)
