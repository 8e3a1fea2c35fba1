"""Values with intervals in rows, several series side by side: one dot and one line each."""

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes

from ldm.errors import UserError
from ldm.report.canvas import WIDTH, css_width, draw, legend, rows
from ldm.report.plots import MARKERS
from ldm.report.theme import Theme

Interval = tuple[float, float, float]  # value, low, high; NaN ends are not drawn, a NaN value leaves the row empty


def interval_dots(
    path: Path | str,
    series: Mapping[str, Mapping[str, Interval]],
    *,
    label: str,
    reference: float | None = None,
) -> Path:
    """Draw {series: {row: (value, low, high)}}, the first row on top; `reference` is a line from top to bottom.

    Rows are those of the first series and in its order; another may lack some.
    """
    if not series or not any(math.isfinite(value) for own in series.values() for value, _, _ in own.values()):
        raise UserError("interval_dots needs at least one finite value")
    names = list(dict.fromkeys(name for own in series.values() for name in own))

    def paint(axes: Axes, theme: Theme) -> None:
        entries, apart = {}, 0.62 / len(series)
        for number, (name, own) in enumerate(series.items()):
            color = theme.series[number % len(theme.series)]
            shown = {row: each for row, each in own.items() if math.isfinite(each[0])}
            places = [names.index(row) + (number - (len(series) - 1) / 2) * apart for row in shown]
            for place, (_, low, high) in zip(places, shown.values(), strict=True):
                if math.isfinite(low) and math.isfinite(high):
                    axes.plot([low, high], [place, place], color=color, linewidth=1.6, alpha=0.75)
            (entries[name],) = axes.plot(
                [value for value, _, _ in shown.values()], places, MARKERS[number % len(MARKERS)], color=color,
                markersize=6, markeredgecolor=theme.surface,
            )  # fmt: skip
        if reference is not None:
            axes.axvline(reference, color=theme.muted, linewidth=1, linestyle="--")
        rows(axes, names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel(label if css_width(axes) == WIDTH else textwrap.fill(label, 48))
        if len(series) > 1:
            legend(axes, entries)

    height = 80 + len(names) * max(26, 11 * len(series) + 8)
    return draw(path, height, paint, list(series) if len(series) > 1 else ())
