"""Rows of numbers as a CSV file and as a table on the screen; what every evaluation ends with."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
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


def show(rows: Sequence[Row]) -> None:
    """Print the rows under the names of the first, numbers to four digits."""
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*[f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()])
    Console().print(table)
