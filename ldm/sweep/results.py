"""Finished cells as rows of two CSV files that are kept with the code: one a cell, and one a measured point."""

import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.sweep.cells import Cell, training_of
from ldm.sweep.measured_under import same_settings
from ldm.sweep.rows_file import read, turn, write

Row = dict[str, Any]
KEY = ("regularizer", "f", "seed")
TEXTS = ("regularizer", "settings", "curve")


class Results:
    """The rows of ``path`` (cells) and of ``<stem>_points.csv`` beside it (their points over steps and over speed)."""

    def __init__(self, path: Path):
        if path.is_dir() or path.suffix != ".csv":
            raise UserError(f"results={path}: name a file that ends in .csv")
        self.path = path
        self.points_path = path.with_name(f"{path.stem}_points.csv")
        self._reread()
        self._lock = threading.Lock()

    def _reread(self) -> None:
        self.cells = read(self.path, partial(_check, needed={"steps": int}))
        self.points = read(self.points_path, partial(_check, needed={"step": int, "curve": str}))
        if self.cells and not self.points_path.exists():
            raise UserError(f"{self.points_path}: is missing, the points of the cells in {self.path}; put it there too")

    def find(self, cell: Cell) -> Row | None:
        """The row of a finished cell."""
        return next((row for row in self.cells if _is(row, cell)), None)

    def check(self, cell: Cell, settings: str) -> None:
        """Raises UserError if a cell's row was measured under other settings."""
        row = self.find(cell)
        if row is not None and not same_settings(row.get("settings"), settings):
            raise UserError(
                f"results={self.path}: its row {cell.name} was measured with {row.get('settings')}, and this sweep has "
                f"{settings}; choose another results="
            )

    def steps_of(self, model: str, training: str | None) -> int | None:
        """The steps that a finished cell of the same model, and of the same `training_of` its settings, trained."""
        for row in self.cells:
            same = Cell(row["f"], row["regularizer"], row["seed"]).model == model
            if same and training is not None and training_of(row.get("settings")) == training:
                return row["steps"]
        return None

    def add(self, cell: Cell, row: Row, points: list[Row]) -> None:
        """Keep a finished cell, durably, beside those that other processes have added since.

        The points come first, so that a row has all of its own. Raises UserError if another process holds the file.
        """
        key = {"regularizer": cell.regularizer, "f": cell.f, "seed": cell.seed}
        with self._lock, turn(self.path):
            self._reread()
            self.points = [old for old in self.points if not _is(old, cell)] + [{**key, **point} for point in points]
            self.cells = [old for old in self.cells if not _is(old, cell)] + [{**key, **row}]
            write(self.points_path, self.points)
            write(self.path, self.cells)


def _is(row: Row, cell: Cell) -> bool:
    return (row["regularizer"], row["f"], row["seed"]) == (cell.regularizer, cell.f, cell.seed)


def _check(row: Row, place: str, needed: Mapping[str, type]) -> None:
    """Raises UserError naming the `place` for what is not a row; the regularizer of pixels becomes ''.

    A row has numbers but in `TEXTS`, and something of its type under each name `needed`.
    """
    if not set(KEY) <= row.keys() or type(row["f"]) is not int or type(row["seed"]) is not int:
        raise UserError(f"{place}: not the row of a cell, with {', '.join(KEY)}")
    row["regularizer"] = row["regularizer"] or ""
    for name, value in row.items():
        if name not in TEXTS and isinstance(value, str):
            raise UserError(f"{place}: {name} is {value!r}, and not a number")
    for name, kind in needed.items():
        if type(row.get(name)) is not kind or (kind is int and row[name] < 1):
            raise UserError(f"{place}: {name} is {row.get(name)!r}, which it cannot be")
