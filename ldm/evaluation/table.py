"""Rows of numbers as a CSV file and as a table on the screen; what every evaluation ends with."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

Row = Mapping[str, Any]


def write_csv(path: Path, rows: Sequence[Row]) -> Path:
    """One line per row under the names of the first; returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def show(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the rows under the names of the first, numbers to four digits; a row may lack some.

    Where that is too wide the names stand on the left, and the rows side by side, as many as there is room for.
    """
    console = console or Console()
    names = list(rows[0])
    upright = Table(*names)
    for row in rows:
        upright.add_row(*[_text(row.get(name, "")) for name in names])
    turned = Table(names[0], *[_text(row[names[0]]) for row in rows])
    for name in names[1:]:
        turned.add_row(name, *[_text(row.get(name, "")) for row in rows])
    for table in (upright, turned):
        if Measurement.get(console, console.options.update(max_width=10_000), table).maximum <= console.width:
            console.print(table)
            return
    if len(rows) == 1:
        for name in names:
            console.print(f"{name} {_text(rows[0][name])}", soft_wrap=True)
    else:
        half = -(-len(rows) // 2)
        show(rows[:half], console)
        show(rows[half:], console)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
