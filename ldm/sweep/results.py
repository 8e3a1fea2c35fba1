"""Finished cells as rows of two CSV files that are kept with the code: one a cell, and one a measured point."""

import csv
import threading
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.files import replace
from ldm.sweep.cells import Cell

Row = dict[str, Any]
KEY = ("regularizer", "f", "seed")


class Results:
    """The rows of ``path`` (cells) and of ``<stem>_points.csv`` beside it (their points over steps and over speed)."""

    def __init__(self, path: Path):
        if path.is_dir() or path.suffix != ".csv":
            raise UserError(f"results={path}: name a file that ends in .csv")
        self.path = path
        self.points_path = path.with_name(f"{path.stem}_points.csv")
        self.cells = _read(path)
        self.points = _read(self.points_path)
        self._lock = threading.Lock()

    def find(self, cell: Cell) -> Row | None:
        """The row of a finished cell."""
        return next((row for row in self.cells if _is(row, cell)), None)

    def check(self, cell: Cell, settings: str) -> None:
        """Raises UserError if a cell's row was measured under other settings."""
        row = self.find(cell)
        if row is not None and row.get("settings") != settings:
            raise UserError(
                f"results={self.path}: its row {cell.name} was measured with {row.get('settings')}, and this sweep has "
                f"{settings}; choose another results="
            )

    def steps_of(self, model: str) -> int | None:
        """The steps that a finished cell of the same model trained."""
        found = (row for row in self.cells if Cell(row["f"], row["regularizer"], row["seed"]).model == model)
        return next((row["steps"] for row in found), None)

    def add(self, cell: Cell, row: Row, points: list[Row]) -> None:
        """Keep a finished cell, durably; the points come first, so that a row has all of its own."""
        key = {"regularizer": cell.regularizer, "f": cell.f, "seed": cell.seed}
        with self._lock:
            self.points = [old for old in self.points if not _is(old, cell)] + [{**key, **point} for point in points]
            self.cells = [old for old in self.cells if not _is(old, cell)] + [{**key, **row}]
            _write(self.points_path, self.points)
            _write(self.path, self.cells)


def _is(row: Row, cell: Cell) -> bool:
    return (row["regularizer"], row["f"], row["seed"]) == (cell.regularizer, cell.f, cell.seed)


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file)]
    for place, row in enumerate(rows, start=2):
        if not set(KEY) <= row.keys() or type(row["f"]) is not int or type(row["seed"]) is not int:
            raise UserError(f"{path}, line {place}: not the row of a cell, with {', '.join(KEY)}")
        row["regularizer"] = row["regularizer"] or ""
    return rows


def _value(text: str | None) -> Any:
    """A number as one; None for nothing."""
    if not text:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _write(path: Path, rows: list[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, write)
