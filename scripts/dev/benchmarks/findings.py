"""What this process has found: figures held to their goals, and curves for the plot.

A suite is one process, and benchmark.py writes what its process found where `findings=` says.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """A figure and its goal. `spread` is the distance of the quartiles, in parts of the median; None of one reading."""

    quantity: str
    figure: float
    goal: float
    at_most: bool = False
    unit: str = "x"
    spread: float | None = None

    @property
    def met(self) -> bool:
        """Whether the goal was reached."""
        return self.figure <= self.goal if self.at_most else self.figure >= self.goal

    @property
    def goal_text(self) -> str:
        """The goal in words."""
        return f"{'<=' if self.at_most else '>='} {self.goal:g} {self.unit}".replace(" x", "x")

    @property
    def missed_by(self) -> float:
        """By which part of the goal the figure misses it; 0 where it is met."""
        return 0.0 if self.met else abs(self.figure - self.goal) / self.goal


@dataclass(frozen=True)
class Curve:
    """Lines {name: (x, y)} of one panel."""

    title: str
    x_label: str
    y_label: str
    lines: dict[str, tuple[Sequence[float], Sequence[float]]]


rows: list[Row] = []
curves: list[Curve] = []


def judged(row: Row) -> str:
    """Keep a row; the line that says its figure, its goal, and whether the goal was reached."""
    rows.append(row)
    word = "ratio" if row.unit == "x" else "figure"
    figure, goal = (f"{value:.2f}{'x' if row.unit == 'x' else ' ' + row.unit}" for value in (row.figure, row.goal))
    return f"{word} {figure}, goal {'<=' if row.at_most else '>='} {goal}: {'met' if row.met else 'missed'}"


def write(path: Path) -> None:
    """All that was found so far, as JSON."""
    path.write_text(json.dumps({"rows": [asdict(row) for row in rows], "curves": [asdict(curve) for curve in curves]}))


def read(found: dict[str, Any]) -> tuple[list[Row], list[Curve]]:
    """The rows and curves of what was written."""
    return [Row(**row) for row in found["rows"]], [Curve(**curve) for curve in found["curves"]]
