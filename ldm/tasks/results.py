"""What has been judged, a row for each number: the CSV that the report goes on from, and the sheets beside it."""

import threading
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.sweep.measured_under import same_settings
from ldm.sweep.rows_file import read, turn, write
from ldm.tasks.trainings import Part

Row = dict[str, Any]
TEXTS = ("task", "quantity", "settings")
NUMBERS = ("value", "low", "high")


class Results:
    """The rows of ``path``: task, seed, quantity, value, its 95 % interval, how many samples it is of, settings."""

    def __init__(self, path: Path):
        if path.is_dir() or path.suffix != ".csv":
            raise UserError(f"results={path}: name a file that ends in .csv")
        self.path = path
        self.rows = read(path, _check, TEXTS)
        self._lock = threading.Lock()

    def find(self, part: Part) -> list[Row]:
        """The rows of a finished part; none of one that is not."""
        return [row for row in self.rows if _is(row, part)]

    def check(self, part: Part, settings: str) -> None:
        """Raises UserError if a part's rows were measured under other settings."""
        for row in self.find(part):
            if not same_settings(row["settings"], settings):
                raise UserError(
                    f"results={self.path}: its rows {part.name} were measured with {row['settings']}, and this report "
                    f"has {settings}; choose another results="
                )

    def add(self, part: Part, rows: list[Row], settings: str) -> None:
        """Keep a finished part, durably, beside those that other processes have added since."""
        own = [{"task": part.task, "seed": part.seed, **row, "settings": settings} for row in rows]
        with self._lock, turn(self.path):
            self.rows = [row for row in read(self.path, _check, TEXTS) if not _is(row, part)] + own
            write(self.path, self.rows)

    def sheet(self, part: Part) -> Path:
        """Where the contact sheet of a part is kept."""
        return self.path.with_name(f"{self.path.stem}_{part.name}.png")


def _is(row: Row, part: Part) -> bool:
    return (row["task"], row["seed"]) == (part.task, part.seed)


def _check(row: Row, place: str) -> None:
    """Raises UserError naming the `place` for what is not a row."""
    texts = all(isinstance(row.get(name), str) for name in TEXTS)
    if not texts or type(row.get("seed")) is not int:
        raise UserError(f"{place}: not the row of a task, with {', '.join(TEXTS)} and seed")
    for name in NUMBERS:
        if not isinstance(row.get(name), int | float):
            raise UserError(f"{place}: {name} is {row.get(name)!r}, and not a number")
