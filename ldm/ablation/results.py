"""Finished cells as rows of two CSV files that are kept with the code: one a cell, and one a measured moment."""

from pathlib import Path
from typing import Any

from ldm.ablation.cells import Cell
from ldm.errors import UserError
from ldm.results.results import CellResults

Row = dict[str, Any]
TEXTS = ("row", "settings", "sampler")


def results_at(path: Path) -> CellResults[Cell]:
    """The cells in the file at `path`, and their moments over the training beside it."""
    return CellResults(path, _check, _check, TEXTS)


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
