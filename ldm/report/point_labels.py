"""Short labels beside the points of a plot, each at the place of eight around it that covers least of the rest."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from ldm.report.theme import Theme


def label_points(axes: Axes, theme: Theme, curves: Sequence[Sequence[tuple[str, float, float]]]) -> None:
    """Label the points (text, x, y) of each curve in its colour; call it last, when the axes have their limits."""
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # settles the layout, so that pixels mean something
    pixel = axes.figure.dpi / 72
    dots = [axes.transData.transform([(x, y) for _, x, y in points]) for points in curves]
    # Taken places: dots along the curves; then each label that has been set.
    taken = np.concatenate([_walk(a, b) for line in dots for a, b in itertools.pairwise([*line, line[-1]])])
    labels: list[tuple[np.ndarray, np.ndarray]] = []
    for number, points in enumerate(curves):
        for (text, _, _), dot in zip(points, dots[number], strict=True):
            size = np.array([5.2 * len(text), 8.5]) * pixel
            centre = min(_around(dot, size, 5.5 * pixel), key=lambda c, s=size: _cover(c, s, taken, labels))  # type: ignore[misc]  # a lambda with a default
            labels.append((centre, size))
            axes.annotate(
                text,
                dot,
                (centre - dot) / pixel,
                xycoords="figure pixels",
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=8.5,
                color=theme.series[number % len(theme.series)],
                path_effects=[withStroke(linewidth=2.5, foreground=theme.surface)],
            ).set_in_layout(False)


def _walk(start: np.ndarray, end: np.ndarray, every: float = 5.0) -> np.ndarray:
    return np.linspace(start, end, 1 + math.ceil(float(np.hypot(*(end - start))) / every))


def _around(dot: np.ndarray, size: np.ndarray, gap: float) -> list[np.ndarray]:
    turns = ((0, 1), (0, -1), (1, 0), (-1, 0), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8))
    return [dot + np.array(turn) * (size / 2 + gap) for turn in turns]


def _cover(
    centre: np.ndarray, size: np.ndarray, taken: np.ndarray, labels: list[tuple[np.ndarray, np.ndarray]]
) -> float:
    on_curves = (np.abs(taken - centre) < 0.7 * size).all(axis=1).sum()
    on_labels = sum(bool((np.abs(other - centre) < 0.55 * (size + other_size)).all()) for other, other_size in labels)
    return float(on_curves + 20 * on_labels)
