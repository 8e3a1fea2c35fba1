"""Finished cells as rows of two CSV files that are kept with the code: one a cell, and one a measured point."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.results.results import CellResults
from ldm.sweep.cells import Cell

Row = dict[str, Any]
KEY = ("regularizer", "f", "seed")
TEXTS = ("regularizer", "settings", "curve")


def results_at(path: Path) -> CellResults[Cell]:
    """The cells in the file at `path`, and their points over steps and over speed beside it."""
    check_point = partial(_check, needed={"step": int, "curve": str})
    results: CellResults[Cell] = CellResults(path, partial(_check, needed={"steps": int}), check_point)
    if results.cells.rows and not results.points.path.exists():
        raise UserError(f"{results.points.path}: is missing, the points of the cells in {path}; put it there too")
    return results


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
