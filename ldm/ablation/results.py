"""Finished cells as rows of two CSV files that are kept with the code: one a cell, and one a measured moment."""

import threading
from pathlib import Path
from typing import Any

from ldm.ablation.cells import Cell, training_of
from ldm.errors import UserError
from ldm.sweep.rows_file import read, turn, write

Row = dict[str, Any]
TEXTS = ("row", "settings", "sampler")


class Results:
    """The rows of ``path`` (cells) and of ``<stem>_points.csv`` beside it (their moments over the training)."""

    def __init__(self, path: Path):
        if path.is_dir() or path.suffix != ".csv":
            raise UserError(f"results={path}: name a file that ends in .csv")
        self.path = path
        self.points_path = path.with_name(f"{path.stem}_points.csv")
        self._reread()
        self._lock = threading.Lock()

    def _reread(self) -> None:
        self.cells, self.points = (read(path, _check, TEXTS) for path in (self.path, self.points_path))

    def find(self, cell: Cell) -> Row | None:
        """The row of a finished cell."""
        return next((row for row in self.cells if _is(row, cell)), None)

    def check(self, cell: Cell, settings: str) -> None:
        """Raises UserError if a cell's row was measured under other settings."""
        row = self.find(cell)
        if row is not None and row["settings"] != settings:
            raise UserError(
                f"results={self.path}: its row {cell.name} was measured with {row['settings']}, and this ablation has "
                f"{settings}; choose another results="
            )

    def steps_of(self, name: str, training: str | None) -> int | None:
        """The steps that a finished cell of the same row, and of the same `training_of` its settings, trained."""
        found = (row for row in self.cells if row["row"] == name and training_of(row["settings"]) == training)
        return next((row["steps"] for row in found), None)

    def add(self, cell: Cell, row: Row, points: list[Row], settings: str) -> None:
        """Keep a finished cell, durably, beside those that other processes have added since; the points come first."""
        key = {"row": cell.row, "seed": cell.seed}
        with self._lock, turn(self.path):
            self._reread()
            own = [{**key, **point, "settings": settings} for point in points]
            self.points = [old for old in self.points if not _is(old, cell)] + own
            self.cells = [old for old in self.cells if not _is(old, cell)] + [{**key, **row, "settings": settings}]
            write(self.points_path, self.points)
            write(self.path, self.cells)


def _is(row: Row, cell: Cell) -> bool:
    return (row["row"], row["seed"]) == (cell.row, cell.seed)


def _check(row: Row, place: str) -> None:
    """Raises UserError naming the `place` for what is not a row of a cell, or a point of one."""
    if row.get("row") is None or type(row.get("seed")) is not int or not isinstance(row.get("settings"), str):
        raise UserError(f"{place}: not the row of a cell, with row, seed and settings")
    row["row"] = str(row["row"])
    for name, value in row.items():
        if name not in TEXTS and isinstance(value, str):
            raise UserError(f"{place}: {name} is {value!r}, and not a number")
    for name in ("steps", "device_seconds"):
        if not isinstance(row.get(name), int | float) or not row[name] > 0:
            raise UserError(f"{place}: {name} is {row.get(name)!r}, which it cannot be")
