"""What a process has measured of a cell, as a file for the one that asked for it, with the settings that it is of."""

from pathlib import Path
from typing import Any

from ldm.files import read_json, write_json
from ldm.results.measured_under import same_settings

Row = dict[str, Any]
MEASURED = "measured.json"


def write_measured(folder: Path, settings: str, row: Row, points: list[Row]) -> None:
    """Keep the row of a cell, and its points."""
    write_json(folder / MEASURED, {"settings": settings, "row": row, "points": points})


def is_measured(folder: Path, settings: str) -> bool:
    """Whether the cell has been measured, and under these settings."""
    path = folder / MEASURED
    return path.exists() and same_settings(read_json(path).get("settings"), settings)


def read_measured(folder: Path) -> tuple[Row, list[Row]]:
    """The row and the points."""
    found = read_json(folder / MEASURED)
    return found["row"], found["points"]
