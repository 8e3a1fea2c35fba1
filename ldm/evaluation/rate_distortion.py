"""Rate and distortion of a trained diffusion model by progressive coding (DDPM, arXiv:2006.11239, section 4.3).

Who has been sent x at some noise, from the highest down, knows D(x): the rate is what was sent for it, the divergences
of the bound so far; the distortion is the error of D.
"""

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from ldm.diffusion.likelihood import Bound
from ldm.evaluation.table import write_csv
from ldm.report.canvas import draw, label
from ldm.report.theme import Theme

Row = dict[str, Any]
NAMED = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # noise levels that are written at their points


def rate_distortion(bound: Bound, unit: str, pixels: bool) -> list[Row]:
    """A row for each level of the bound, the highest noise first: sigma, the rate in `unit`, and root mean squares.

    `rmse` is that of D - x0 in units of x0, `rmse_grey_levels` that of the decoded image, of 255, where `pixels` were
    looked at. Means are over all samples; each level's rate has half of its own steps.
    """
    steps = bound.steps(bound.best_spread()).mean(0)
    above = steps.flip(0).cumsum(0).flip(0) - steps / 2
    rates = (bound.prior.mean() + above) / (bound.size * math.log(2))
    rows = []
    for place in reversed(range(len(rates))):
        row = {"sigma": bound.sigmas[place].item(), unit: rates[place].item()}
        row["rmse"] = bound.errors[:, place].mean().sqrt().item()
        if pixels:
            row["rmse_grey_levels"] = bound.seen[:, place].mean().sqrt().item()
        rows.append(row)
    return rows


def write_rate_distortion(folder: Path, bound: Bound, unit: str, pixels: bool) -> list[Row]:
    """Write the rows as ``rate_distortion.csv``, and draw them as ``rate_distortion.png``; returns them."""
    rows = rate_distortion(bound, unit, pixels)
    write_csv(folder / "rate_distortion.csv", rows)
    column = "rmse_grey_levels" if pixels else "rmse"
    named = _named(rows, unit)

    def paint(axes: Axes, theme: Theme) -> None:
        axes.plot([row[unit] for row in rows], [row[column] for row in rows], color=theme.series[0])
        for place in named:
            at = (rows[place][unit], rows[place][column])
            axes.plot(*at, "o", color=theme.series[0], markeredgecolor=theme.surface)
            axes.annotate(
                f"σ {rows[place]['sigma']:.2g}", at, (6, 4), textcoords="offset points", color=theme.muted, fontsize=8.5
            )
        axes.set_ylim(bottom=0)
        error = "root mean square error of the image, grey levels of 255" if pixels else "root mean square error of x0"
        label(axes, theme, unit.replace("_", " "), error)

    draw(folder / "rate_distortion.png", 325, paint)
    return rows


def _named(rows: list[Row], unit: str) -> list[int]:
    """Places of the rows nearest to `NAMED`, but for those too close to the one before to be told apart."""
    within = [sigma for sigma in NAMED if rows[-1]["sigma"] <= sigma <= rows[0]["sigma"]]
    near = [min(range(len(rows)), key=lambda k: abs(math.log(rows[k]["sigma"] / sigma))) for sigma in within]
    kept: list[int] = []
    for place in dict.fromkeys(near):
        if not kept or rows[place][unit] - rows[kept[-1]][unit] > 0.05 * rows[-1][unit]:
            kept.append(place)
    return kept
