"""Rows of figures, the files that they are kept in, and the table."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NEEDS_GPU = "needs a GPU"


@dataclass(frozen=True)
class Row:
    """One figure. `value` None: it was not measured, for the reason in `note`. `goal`: at least, or with `at_most` at
    most, so much.
    """

    what: str
    value: float | None
    unit: str = ""
    goal: float | None = None
    at_most: bool = False
    note: str = ""


def row_of(row: Row) -> dict[str, Any]:
    """As JSON holds it."""
    return asdict(row)


def read(file: Path, device: str, size: str, failed: bool = False) -> dict[str, Any] | None:
    """What a measurement has left in its file for this device and size; None for nothing, or without `failed` for a
    failure.
    """
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text())
    except ValueError:
        return None
    fits = isinstance(found, dict) and found.get("device") == device and found.get("size") == size
    return found if fits and (failed or "rows" in found) else None


def table(facts: dict[str, Any], results: dict[str, dict[str, Any] | None]) -> str:
    """One line for each figure: what, value with its unit, goal, and whether it was reached."""
    lines = [f"{facts['device']}, {facts['memory_gib']} GiB, torch {facts['torch']}, CUDA {facts['cuda']}, "
             f"size {facts['size']}, {facts['seconds']:.0f} s", ""]  # fmt: skip
    lines.append(f"{'measurement':<18} {'what':<44} {'figure':>12} {'':<10} goal")
    for name, found in results.items():
        if found is None or "failed" in found:
            lines.append(f"{name:<18} failed: {'nothing was written' if found is None else found['failed']}")
            continue
        for place, row in enumerate(Row(**own) for own in found["rows"]):
            lines.append(f"{'' if place else name:<18} {_line(row)}".rstrip())
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    if row.value is None:
        return f"{row.what:<44} {row.note:>12}"
    goal = ""
    if row.goal is not None:
        reached = row.value <= row.goal if row.at_most else row.value >= row.goal
        goal = f"{'<=' if row.at_most else '>='} {row.goal:g}: {'met' if reached else 'missed'}"
    return f"{row.what:<44} {_figure(row.value):>12} {row.unit:<10} {goal}{'  ' + row.note if row.note else ''}"


def _figure(value: float) -> str:
    """Three digits that count, or all of a large number's whole part."""
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
