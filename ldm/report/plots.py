"""The report's plots: numbers in, PNG at two pixels per CSS pixel out, for light and dark pages.

Each function writes `path` and, beside it, its twins for dark and for narrow pages; the page picks.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ldm.errors import UserError
from ldm.report.canvas import WIDTH, css_width, draw, label, legend, rows
from ldm.report.point_labels import label_points
from ldm.report.theme import Theme

LINES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX"  # one more than there are colours, so that no two of the first 42 share both
Bars = tuple[float, float, float, float]  # ends of the intervals of a point's quality and of its alignment


def duration(seconds: float) -> str:
    """'48 s', '4 min 05 s' or '2 h 07 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def smooth(values: Sequence[float] | np.ndarray, smoothing: float) -> np.ndarray:
    """Exponential moving average over the points, free of start-up bias; values that are not finite do not enter."""
    if not 0 <= smoothing < 1:
        raise UserError(f"smoothing must be in [0, 1), got {smoothing}")
    averages, total, weight = np.full(len(values), np.nan), 0.0, 0.0
    for place, value in enumerate(values):
        if math.isfinite(value):
            total = smoothing * total + (1 - smoothing) * value
            weight = smoothing * weight + (1 - smoothing)
        averages[place] = total / weight if weight else np.nan
    return averages


def loss_curves(
    path: Path | str,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    smoothing: float = 0.9,
    log_y: bool = False,
    x_label: str = "optimizer step",
    y_label: str = "loss",
) -> Path:
    """Curves {name: (steps, values)} smoothed, raw values faint behind them, the last smoothed value in the legend."""
    if not curves:
        raise UserError("loss_curves needs at least one curve")
    for name, (steps, values) in curves.items():
        if len(steps) != len(values):
            raise UserError(f"curve {name!r}: {len(steps)} steps for {len(values)} values")
        usable = [v for v in values if math.isfinite(v) and (v > 0 or not log_y)]
        if not usable:
            raise UserError(f"curve {name!r} has no {'positive, ' if log_y else ''}finite value to draw")

    def paint(axes: Axes, theme: Theme) -> None:
        lows, highs, entries = [], [], {}
        for place, (name, (steps, values)) in enumerate(curves.items()):
            raw = np.array(values, dtype=float)
            raw[~np.isfinite(raw) | ((raw <= 0) & log_y)] = np.nan
            line = smooth(raw, smoothing)
            color, style = theme.series[place % len(theme.series)], LINES[place // len(theme.series) % len(LINES)]
            if smoothing:
                axes.plot(steps, raw, color=color, alpha=0.3, linewidth=0.8)
            marker = "o" if np.isfinite(line).sum() == 1 else ""
            (entries[f"{name}  {line[-1]:.4g}"],) = axes.plot(steps, line, style, marker=marker, color=color)
            # One spike must not flatten the rest: the axis follows the smooth curve and 98 % of the raw values.
            lows += [np.nanmin(line), np.nanpercentile(raw, 1)]
            highs += [np.nanmax(line), np.nanpercentile(raw, 99)]
        _fit_y(axes, min(lows), max(highs), log_y)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(7 if css_width(axes) == WIDTH else 4, integer=True))
        ends = [end for steps, _ in curves.values() for end in (min(steps), max(steps))]
        room = 0.01 * (max(ends) - min(ends)) or 1
        axes.set_xlim(min(ends) - room, max(ends) + room)
        label(axes, theme, x_label, y_label)
        legend(axes, entries)

    return draw(path, 325, paint, curves)


def trade_off(
    path: Path | str,
    models: Mapping[str, Sequence[tuple[float, float, float]]],
    *,
    quality_label: str,
    alignment_label: str,
    bars: Mapping[str, Sequence[Bars]] | None = None,
) -> Path:
    """Curves over guidance, {model: [(scale, quality, alignment)]}: quality across (lower is better), alignment up.

    The labels carry the backbone's name ("KID, EfficientNet-lite0 features"); the scale stands at each point. `bars`,
    one for each point, are drawn as thin lines through it.
    """
    if not models:
        raise UserError("trade_off needs at least one model")
    for name, points in models.items():
        if not points or not all(math.isfinite(value) for point in points for value in point):
            raise UserError(
                f"model {name!r}: needs points (scale, quality, alignment) of finite numbers, got {list(points)}"
            )

    def paint(axes: Axes, theme: Theme) -> None:
        entries = {}
        for place, (name, points) in enumerate(models.items()):
            (entries[name],) = axes.plot(
                [quality for _, quality, _ in points],
                [alignment for _, _, alignment in points],
                LINES[place % len(LINES)],
                color=theme.series[place % len(theme.series)],
                marker=MARKERS[place % len(MARKERS)],
                markeredgecolor=theme.surface,
            )
            color, own = theme.series[place % len(theme.series)], (bars or {}).get(name, ())
            for (_, quality, alignment), (q_low, q_high, a_low, a_high) in zip(points, own, strict=bool(own)):
                axes.plot([q_low, q_high], [alignment] * 2, color=color, linewidth=0.9, alpha=0.6, zorder=1)
                axes.plot([quality] * 2, [a_low, a_high], color=color, linewidth=0.9, alpha=0.6, zorder=1)
        axes.margins(0.1)
        axes.annotate(
            "better",
            (0.012, 0.975),
            (0.052, 0.9),
            xycoords="axes fraction",
            color=theme.muted,
            fontsize=8.5,
            arrowprops={"arrowstyle": "->", "color": theme.muted, "linewidth": 0.9, "shrinkA": 1, "shrinkB": 0},
        )
        label(axes, theme, f"{quality_label} (lower is better)", f"{alignment_label} (higher is better)")
        legend(axes, entries)
        label_points(axes, theme, [[(f"{s:g}", q, a) for s, q, a in points] for points in models.values()])

    return draw(path, 425, paint, models)


def rate_distortion(
    path: Path | str,
    codecs: Mapping[str, Sequence[tuple[float, float]]],
    models: Mapping[str, Sequence[tuple[float, float, str]]],
    *,
    distortion_label: str,
) -> Path:
    """Codecs {name: [(bits per pixel, distortion)]} as lines and models {name: [(..., ..., label)]} as points."""
    if not models:
        raise UserError("rate_distortion needs at least one model")

    def paint(axes: Axes, theme: Theme) -> None:
        entries = {}
        for place, (name, curve) in enumerate(codecs.items()):
            entries[name] = axes.plot(
                *zip(*sorted(curve), strict=True), LINES[1 + place % 3], color=theme.muted, linewidth=1.2
            )[0]
        for place, (name, points) in enumerate(models.items()):
            color, marker = theme.series[place % len(theme.series)], MARKERS[place % len(MARKERS)]
            rates, values, _ = zip(*points, strict=True)
            (entries[name],) = axes.plot(rates, values, marker, color=color, markeredgecolor=theme.surface)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.margins(0.08)
        label(axes, theme, "bits per pixel", distortion_label)
        legend(axes, entries)
        label_points(axes, theme, [[(text, rate, value) for rate, value, text in points] for points in models.values()])

    return draw(path, 425, paint, [*codecs, *models])


def quality_over_speed(
    path: Path | str, models: Mapping[str, Sequence[tuple[float, float, str]]], *, quality_label: str
) -> Path:
    """Curves {model: [(samples per second, quality, label)]}: speed across, logarithmic; lower quality is better."""
    if not models:
        raise UserError("quality_over_speed needs at least one model")

    def paint(axes: Axes, theme: Theme) -> None:
        entries = {}
        for place, (name, points) in enumerate(models.items()):
            color, marker = theme.series[place % len(theme.series)], MARKERS[place % len(MARKERS)]
            rates, values, _ = zip(*points, strict=True)
            (entries[name],) = axes.plot(
                rates, values, LINES[place % len(LINES)], color=color, marker=marker, markeredgecolor=theme.surface
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.margins(0.1)
        label(axes, theme, "samples/s (labels: sampling steps)", f"{quality_label} (lower is better)")
        legend(axes, entries)
        label_points(axes, theme, [[(text, rate, value) for rate, value, text in points] for points in models.values()])

    return draw(path, 425, paint, models)


def interval_bars(path: Path | str, losses: Mapping[str, tuple[float, float, float]]) -> Path:
    """Per comparison {name: (loss compared with, loss, half the interval of the difference)}: the change in per cent.

    A change that its interval does not reach 0 from has a colour, any other is grey. The axis spans at least 1 % each
    way, so that a difference of no account looks like one.
    """
    if not losses:
        raise UserError("interval_bars needs at least one interval")
    for name, (other, loss, half) in losses.items():
        if not (all(map(math.isfinite, (other, loss, half))) and other > 0 and half >= 0):
            raise UserError(
                f"interval {name!r}: losses and half intervals must be finite, the loss compared with positive, got "
                f"{(other, loss, half)}"
            )

    def paint(axes: Axes, theme: Theme) -> None:
        changes = [100 * (loss / other - 1) for other, loss, _ in losses.values()]
        halves = [100 * half / other for other, _, half in losses.values()]
        reach = 1.2 * max(1.0, *[abs(change) + half for change, half in zip(changes, halves, strict=True)])
        axes.axvline(0, color=theme.ink, linewidth=1)
        for place, (change, half, (other, loss, _)) in enumerate(zip(changes, halves, losses.values(), strict=True)):
            color = theme.muted if abs(change) <= half else theme.series[0] if change < 0 else theme.series[1]
            axes.barh(place, change, height=0.42, color=color, alpha=0.35)
            axes.errorbar(change, place, xerr=half, fmt="o", color=color, capsize=4, linewidth=2, markersize=6)
            losses_too = f"     {other:.4g} \N{RIGHTWARDS ARROW} {loss:.4g}" if css_width(axes) == WIDTH else ""
            axes.annotate(
                f"{change:+.2f} % ± {half:.2f}{losses_too}".replace("-", "\N{MINUS SIGN}"),
                (0, place),
                (-6 if change < 0 else 6, 10),
                textcoords="offset points",
                ha="right" if change < 0 else "left",
                va="bottom",
                color=theme.ink,
                fontsize=9,
            )
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-0.75, len(losses) - 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5 if css_width(axes) < WIDTH else 9))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:+g} %".replace("-", "\N{MINUS SIGN}") if value else "0 %")
        )
        rows(axes, list(losses))
        axes.set_xlabel("change of the held-out loss (left is better)")

    return draw(path, 100 + 52 * len(losses), paint)


def stage_times(path: Path | str, stages: Mapping[str, float]) -> Path:
    """Stages {name: seconds} as bars one after the other, the first on top, each with its time and share."""
    total = sum(stages.values())
    if not total > 0:
        raise UserError(f"stage_times needs stages that took time, got {dict(stages)}")

    def paint(axes: Axes, theme: Theme) -> None:
        start, unit = 0.0, 3600 if total >= 7200 else 60 if total >= 120 else 1
        for place, seconds in enumerate(stages.values()):
            axes.barh(place, seconds / unit, left=start / unit, height=0.56, color=theme.series[0])
            late = start + seconds / 2 > 0.62 * total  # no room on the right: the label goes to the left of the bar
            axes.annotate(
                duration(seconds) + (f"  ·  {100 * seconds / total:.0f} %" if css_width(axes) == WIDTH else ""),
                ((start if late else start + seconds) / unit, place),
                (-6 if late else 6, 0),
                textcoords="offset points",
                ha="right" if late else "left",
                va="center",
                color=theme.muted,
            )
            start += seconds
        axes.set_xlim(0, total / unit * 1.01)
        axes.xaxis.set_major_locator(MaxNLocator(8 if css_width(axes) == WIDTH else 4, steps=(1, 2, 5, 10)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        rows(axes, list(stages))
        axes.set_xlabel({1: "seconds", 60: "minutes", 3600: "hours"}[unit])

    return draw(path, 92 + 30 * len(stages), paint)


def _fit_y(axes: Axes, low: float, high: float, log_y: bool) -> None:
    if not log_y:
        room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - room, high + room)
        return
    axes.set_yscale("log")
    room = (high / low) ** 0.05 if high > low else 1.1
    axes.set_ylim(low / room, high * room)
    # Within a decade the powers of ten are too few: even steps there, 1-2-5 beyond, always in plain figures.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high / low > 10 else MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
