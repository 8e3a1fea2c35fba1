"""Several quantities over one, with their intervals: what diagnostics draw."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from ldm.errors import UserError
from ldm.report.canvas import draw, label, legend
from ldm.report.plots import LINES, MARKERS
from ldm.report.theme import Theme

Point = tuple[float, float, float, float]  # x, y and the ends of y's interval; NaN where it has none


def lines(
    path: Path | str, curves: Mapping[str, Sequence[Point]], *, x_label: str, y_label: str, log_x: bool = False
) -> Path:
    """Curves {name: [(x, y, low, high)]} in the order of x, each with a band for its intervals."""
    if not any(curves.values()):
        raise UserError("lines needs at least one curve with a point")
    for name, points in curves.items():
        if not all(math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x) for x, y, *_ in points):
            raise UserError(f"curve {name!r}: its points must be finite{', and above 0 across' if log_x else ''}")

    def paint(axes: Axes, theme: Theme) -> None:
        entries = {}
        for place, (name, points) in enumerate(curves.items()):
            if not points:
                continue
            across, values, low, high = zip(*sorted(points), strict=True)
            color = theme.series[place % len(theme.series)]
            style = LINES[place // len(theme.series) % len(LINES)]
            marker = MARKERS[place % len(MARKERS)]
            (entries[name],) = axes.plot(
                across, values, style, color=color, marker=marker, markersize=5, markeredgecolor=theme.surface
            )
            axes.fill_between(across, low, high, color=color, alpha=0.15, linewidth=0)
        if log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.margins(0.03, 0.08)
        label(axes, theme, x_label, y_label)
        legend(axes, entries)

    return draw(path, 360, paint, curves)
