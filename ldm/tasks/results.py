"""What has been judged, a row for each number: the CSV that the report goes on from, and the sheets beside it."""

from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.results.results import Results
from ldm.tasks.trainings import Part

Row = dict[str, Any]
TEXTS = ("task", "quantity", "settings")
NUMBERS = ("value", "low", "high")


def results_at(path: Path) -> Results[Part]:
    """The rows of ``path``: task, seed, quantity, value, its 95 % interval, how many samples it is of, settings."""
    return Results(path, _check, TEXTS)


def sheet_of(results: Results[Part], part: Part) -> Path:
    """Where the contact sheet of a part is kept."""
    return results.path.with_name(f"{results.path.stem}_{part.name}.png")


def _check(row: Row, place: str) -> None:
    """Raises UserError naming the `place` for what is not a row."""
    texts = all(isinstance(row.get(name), str) for name in TEXTS)
    if not texts or type(row.get("seed")) is not int:
        raise UserError(f"{place}: not the row of a task, with {', '.join(TEXTS)} and seed")
    for name in NUMBERS:
        if not isinstance(row.get(name), int | float):
            raise UserError(f"{place}: {name} is {row.get(name)!r}, and not a number")
