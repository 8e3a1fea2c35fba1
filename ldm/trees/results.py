"""What has been judged of trees, a row for each number: the CSV that the report goes on from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.results.results import Results

Row = dict[str, Any]
TEXTS = ("schedule", "system", "quantity", "settings")


@dataclass(frozen=True)
class Part:
    """The tree of a schedule with one training seed."""

    schedule: str
    seed: int

    @property
    def name(self) -> str:
        """Such as fig7-seed0."""
        return f"{self.schedule}-seed{self.seed}"


def results_at(path: Path) -> Results[Part]:
    """The rows of ``path``: schedule, seed, system, quantity, sampling_seed, scale, value, low, high, settings.

    `system` is an ensemble of the schedule, a pairing or a comparison; what is not of samples has no sampling seed and
    no scale, what has no interval no `low` and `high`.
    """
    return Results(path, _check, TEXTS)


def _check(row: Row, place: str) -> None:
    """Raises UserError naming the `place` for what is not a row."""
    if not all(isinstance(row.get(name), str) for name in TEXTS) or type(row.get("seed")) is not int:
        raise UserError(f"{place}: not the row of a tree, with {', '.join(TEXTS)} and seed")
    if not isinstance(row.get("value"), int | float):
        raise UserError(f"{place}: value is {row.get('value')!r}, and not a number")
