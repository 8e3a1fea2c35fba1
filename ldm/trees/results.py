"""What has been judged of trees, a row for each number: the CSV that the report goes on from."""

import threading
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.sweep.measured_under import same_settings
from ldm.sweep.rows_file import read, turn, write

Row = dict[str, Any]
TEXTS = ("schedule", "system", "quantity", "settings")


class Results:
    """The rows of ``path``: schedule, seed, system, quantity, sampling_seed, scale, value, low, high, settings.

    `system` is an ensemble of the schedule, a pairing or a comparison; what is not of samples has no sampling seed and
    no scale, what has no interval no `low` and `high`.
    """

    def __init__(self, path: Path):
        if path.is_dir() or path.suffix != ".csv":
            raise UserError(f"results={path}: name a file that ends in .csv")
        self.path = path
        self.rows = read(path, _check, TEXTS)
        self._lock = threading.Lock()

    def find(self, schedule: str, seed: int) -> list[Row]:
        """The rows of a judged tree; none of one that is not."""
        return [row for row in self.rows if (row["schedule"], row["seed"]) == (schedule, seed)]

    def check(self, schedule: str, seed: int, settings: str) -> None:
        """Raises UserError if a tree's rows were measured under other settings."""
        for row in self.find(schedule, seed):
            if not same_settings(row["settings"], settings):
                raise UserError(
                    f"results={self.path}: its rows {schedule}, seed {seed} were measured with {row['settings']}, and "
                    f"this report has {settings}; choose another results="
                )

    def add(self, schedule: str, seed: int, rows: list[Row], settings: str) -> None:
        """Keep a judged tree, durably, beside those that other processes have added since."""
        own = [{"schedule": schedule, "seed": seed, **row, "settings": settings} for row in rows]
        with self._lock, turn(self.path):
            there = read(self.path, _check, TEXTS)
            others = [row for row in there if (row["schedule"], row["seed"]) != (schedule, seed)]
            self.rows = others + own
            write(self.path, self.rows)


def _check(row: Row, place: str) -> None:
    """Raises UserError naming the `place` for what is not a row."""
    if not all(isinstance(row.get(name), str) for name in TEXTS) or type(row.get("seed")) is not int:
        raise UserError(f"{place}: not the row of a tree, with {', '.join(TEXTS)} and seed")
    if not isinstance(row.get("value"), int | float):
        raise UserError(f"{place}: value is {row.get('value')!r}, and not a number")
