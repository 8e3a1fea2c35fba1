"""What a diagnostic found, in W&B: a run of its own beside the files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.training.loggers import log_summary


def log(
    tree: Mapping[str, Any],
    folder: Path,
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    pictures: Mapping[str, Path],
) -> None:
    """Rows as `tables` {name: rows} with a curve for each column of numbers, and PNG files, if `tree` has a logger.

    The run is called as the folder; the client's files lie in it.
    """
    if not tree["logger"]:
        return
    numbers = {name: _numbers(rows) for name, rows in tables.items() if rows}
    log_summary(
        folder, folder.name, tree["logger"]["project"], tree["logger"]["mode"], {}, numbers,
        {name: path for name, path in pictures.items() if path.exists()},
    )  # fmt: skip


def _numbers(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The columns of numbers, the same in every row; NaN for what a row lacks."""
    columns = dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, int | float))
    return [{name: float(row.get(name, math.nan)) for name in columns} for row in rows]
