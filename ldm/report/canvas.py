"""Shared by every plot of the report: one style for light and dark, wide and narrow pages, and writing the files.

Drawn with matplotlib's objects on Agg; no pyplot, no state left behind. Text is literal: a "$" in a name is a dollar.
"""

import io
import math
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from ldm.files import write_bytes
from ldm.report.theme import DARK, FONTS, LIGHT, Theme

WIDTH, NARROW = 720, 380  # CSS pixels; text has the same size in both


def dark_path(path: Path) -> Path:
    """Where the twin of a plot for dark pages lies: `loss.png` -> `loss.dark.png`."""
    return path.with_suffix(f".dark{path.suffix}")


def narrow_path(path: Path) -> Path:
    """Where the twin of a plot for narrow pages lies: `loss.png` -> `loss.narrow.png`."""
    return path.with_suffix(f".narrow{path.suffix}")


def draw(path: Path | str, height: int, paint: Callable[[Axes, Theme], None], named: Collection[str] = ()) -> Path:
    """Call `paint(axes, theme)` for each theme and width; write `path` and its twins at two pixels per CSS pixel.

    `height` is in CSS pixels, to which room for a legend of the entries `named` is added.
    """
    path = Path(path)
    files = {(WIDTH, LIGHT): path, (NARROW, LIGHT): narrow_path(path)}
    files |= {(width, DARK): dark_path(file) for (width, _), file in files.items()}
    for (width, theme), file in files.items():
        with matplotlib.rc_context(_style(theme)):
            full = height + legend_height(named, width)
            figure = Figure(figsize=(width / 96, full / 96), dpi=192, layout="constrained")
            FigureCanvasAgg(figure)
            paint(figure.subplots(), theme)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": None})
        write_bytes(file, buffer.getvalue())
    return path


def label(axes: Axes, theme: Theme, x_label: str, y_label: str) -> None:
    """Label the axes; the vertical axis's label is horizontal, above the axis, where it is easier to read."""
    axes.set_title(y_label, loc="left", fontsize=9.5, color=theme.muted, pad=9)
    axes.set_xlabel(x_label)


def legend(axes: Axes, entries: Mapping[str, Line2D]) -> None:
    """The entries {text: line} above the vertical axis's label, in as many columns as fit."""
    above = ScaledTranslation(0, 24 / 72, axes.figure.dpi_scale_trans)
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "bbox_transform": axes.transAxes + above}
    axes.legend(list(entries.values()), list(entries), ncols=_columns(entries, css_width(axes)), **place)


def css_width(axes: Axes) -> float:
    """The width of the plot that the axes are in, in CSS pixels."""
    return 96 * axes.figure.get_figwidth()  # type: ignore[union-attr]  # axes lie in a whole figure


def _columns(entries: Collection[str], width: float) -> int:
    return max(1, min(len(entries), int(width / 6.86) // (6 + max(map(len, entries)))))  # 105 characters fill 720 px


def legend_height(names: Collection[str], width: float) -> int:
    """CSS pixels to add to a plot of this width for the legend of these names."""
    return 17 * math.ceil(len(names) / _columns([f"{name}  0.0000" for name in names], width)) if names else 0


def rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of a bar chart, the first on top; long names take two lines where the plot is narrow."""
    if css_width(axes) < WIDTH:
        names = [textwrap.fill(name, 18) for name in names]
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelcolor=matplotlib.rcParams["text.color"])
    axes.invert_yaxis()
    axes.grid(False, axis="y")


def _style(theme: Theme) -> dict[str, object]:
    installed = set(fontManager.get_font_names())
    return {
        "font.family": [font for font in FONTS if font in installed],
        "font.size": 9.5,
        "text.color": theme.ink,
        "text.parse_math": False,
        "figure.facecolor": theme.surface,
        "savefig.facecolor": theme.surface,
        "figure.constrained_layout.h_pad": 0.14,
        "figure.constrained_layout.w_pad": 0.16,
        "axes.facecolor": theme.surface,
        "axes.edgecolor": theme.rule,
        "axes.labelcolor": theme.muted,
        "axes.labelsize": 9.5,
        "axes.labelpad": 7,
        "axes.linewidth": 1,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.unicode_minus": True,
        "grid.color": theme.rule,
        "grid.linewidth": 0.7,
        "xtick.color": theme.rule,
        "xtick.labelcolor": theme.muted,
        "xtick.labelsize": 9,
        "xtick.major.size": 4,
        "ytick.color": theme.rule,
        "ytick.labelcolor": theme.muted,
        "ytick.labelsize": 9,
        "ytick.major.size": 0,
        "lines.linewidth": 2,
        "lines.markersize": 7,
        "lines.solid_capstyle": "round",
        "lines.dash_capstyle": "round",
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "legend.handlelength": 1.6,
        "legend.columnspacing": 1.8,
        "legend.borderaxespad": 0,
        "legend.borderpad": 0.2,
    }
