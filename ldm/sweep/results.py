"""Finished cells as rows of two CSV files that are kept with the code: one a cell, and one a measured point."""

import csv
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.files import replace
from ldm.holding import FolderHeld, held
from ldm.sweep.cells import Cell, training_of

Row = dict[str, Any]
KEY = ("regularizer", "f", "seed")
TEXTS = ("regularizer", "settings", "curve")
TURN_SECONDS = 120.0  # to wait for others that add to the same file: a dead one counts as gone by then


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
        self.cells = _read(self.path, {"steps": int})
        self.points = _read(self.points_path, {"step": int, "curve": str})
        if self.cells and not self.points_path.exists():
            raise UserError(f"{self.points_path}: is missing, the points of the cells in {self.path}; put it there too")

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
        with self._lock, _turn(self.path):
            self._reread()
            self.points = [old for old in self.points if not _is(old, cell)] + [{**key, **point} for point in points]
            self.cells = [old for old in self.cells if not _is(old, cell)] + [{**key, **row}]
            _write(self.points_path, self.points)
            _write(self.path, self.cells)


def _is(row: Row, cell: Cell) -> bool:
    return (row["regularizer"], row["f"], row["seed"]) == (cell.regularizer, cell.f, cell.seed)


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Hold the file at `path`, once other processes that add to it have done so."""
    last = time.monotonic() + TURN_SECONDS
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(held(path.with_name(f".{path.name}.held"), "adding a cell to the results of"))
                break
            except (FolderHeld, FileNotFoundError):  # or the other one removes its folder just now
                if time.monotonic() > last:
                    raise
                time.sleep(0.1)
        yield


def _read(path: Path, needed: Mapping[str, type]) -> list[Row]:
    """The rows of a file, which have numbers but in `TEXTS`, and something of its type under each name `needed`."""
    if not path.exists():
        return []
    rows: list[Row] = []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        try:
            for texts in reader:
                rows.append({name: _value(text) for name, text in texts.items()})
                _check(rows[-1], f"{path}, line {reader.line_num}", needed)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}, after line {reader.line_num}: not to be read as CSV: {error}") from error
    return rows


def _check(row: Row, place: str, needed: Mapping[str, type]) -> None:
    """Raises UserError naming the `place` for what is not a row; the regularizer of pixels becomes ''."""
    if None in row:
        raise UserError(f"{place}: has more values than there are names in the first line")
    if not set(KEY) <= row.keys() or type(row["f"]) is not int or type(row["seed"]) is not int:
        raise UserError(f"{place}: not the row of a cell, with {', '.join(KEY)}")
    row["regularizer"] = row["regularizer"] or ""
    for name, value in row.items():
        if name not in TEXTS and isinstance(value, str):
            raise UserError(f"{place}: {name} is {value!r}, and not a number")
    for name, kind in needed.items():
        if type(row.get(name)) is not kind or (kind is int and row[name] < 1):
            raise UserError(f"{place}: {name} is {row.get(name)!r}, which it cannot be")


def _value(text: str | list[str] | None) -> Any:
    """A number as one; None for nothing; the list of values that have no name as it is."""
    if not text:
        return None
    if isinstance(text, list):
        return text
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
