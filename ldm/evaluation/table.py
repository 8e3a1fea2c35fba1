"""Rows of numbers as a CSV file and as a table on the screen; what every evaluation ends with."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

Row = Mapping[str, Any]


def ends(key: str) -> tuple[str, str]:
    """The columns of an interval: those of ``kid/NAME`` are ``kid_low/NAME`` and ``kid_high/NAME``."""
    metric, slash, backbone = key.partition("/")
    return f"{metric}_low{slash}{backbone}", f"{metric}_high{slash}{backbone}"


def write_csv(path: Path, rows: Sequence[Row]) -> Path:
    """One line per row under the names of all, in the order of the first to have each; returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def show(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the rows under the names of the first, numbers to four digits; a row may lack some.

    An interval stands behind its value, in brackets. Where that is too wide the names stand on the left, and the rows
    side by side, as many as there is room for.
    """
    console, rows = console or Console(), [_folded(row) for row in rows]
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


def _folded(row: Row) -> dict[str, Any]:
    """A row with the ends of each interval in the text of its value."""
    intervals = {key: ends(key) for key in row if row.keys() >= set(ends(key))}
    bounds = {end for own in intervals.values() for end in own}
    told = {key: f"{_text(row[key])} [{_text(row[low])}, {_text(row[high])}]" for key, (low, high) in intervals.items()}
    return {key: told.get(key, value) for key, value in row.items() if key not in bounds}


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
