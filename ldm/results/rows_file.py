"""Finished parts of a long measurement as rows of a CSV file that is kept with the code, added to by one at a time."""

import csv
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.files import replace
from ldm.holding import FolderHeld, held

Row = dict[str, Any]
TURN_SECONDS = 120.0  # to wait for others that add to the same file: a dead one counts as gone by then


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Hold the file at `path`, once other processes that add to it have done so. UserError if one does not let go."""
    last = time.monotonic() + TURN_SECONDS
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(held(path.with_name(f".{path.name}.held"), "adding to the results in"))
                break
            except (FolderHeld, FileNotFoundError):  # or the other one removes its folder just now
                if time.monotonic() > last:
                    raise
                time.sleep(0.1)
        yield


def read(path: Path, check: Callable[[Row, str], None], texts: Collection[str] = ()) -> list[Row]:
    """The rows of a file, none if there is no such file; `check(row, place)` refuses what is not one.

    What is a number is one, but in the columns of `texts`, whose names may be digits; what is empty is None. Raises
    UserError for what is no CSV.
    """
    if not path.exists():
        return []
    rows: list[Row] = []
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin it with a byte order mark
        reader = csv.DictReader(file)
        try:
            for line in reader:
                place = f"{path}, line {reader.line_num}"
                if None in line:
                    raise UserError(f"{place}: has more values than there are names in the first line")
                rows.append({name: (text or None) if name in texts else _value(text) for name, text in line.items()})
                check(rows[-1], place)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}, after line {reader.line_num}: not to be read as CSV: {error}") from error
    return rows


def write(path: Path, rows: list[Row]) -> None:
    """The rows under the names of all, durably, in the place of what the file held."""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def content(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, content)


def _value(text: str | None) -> Any:
    """A number as one; None for nothing."""
    if not text:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
