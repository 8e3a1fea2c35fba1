"""What has finished of a command that goes on where it was, as the rows of results=; and what is left of it."""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from ldm.errors import UserError
from ldm.results.measured_under import same_settings
from ldm.results.rows_file import read, turn, write

Row = dict[str, Any]


class Part(Protocol):
    """What is measured as one: a dataclass, whose fields are the columns that its rows are known by."""

    @property
    def name(self) -> str:
        """As messages, runs and files name it."""


P = TypeVar("P", bound=Part)


class Results(Generic[P]):
    """The rows of finished parts in the CSV file at `path`; `check_row(row, place)` refuses what is none.

    Columns `texts` hold no numbers, whatever they look like.
    """

    def __init__(self, path: Path, check_row: Callable[[Row, str], None], texts: Collection[str] = ()):
        if path.is_dir() or path.suffix != ".csv":
            raise UserError(f"results={path}: name a file that ends in .csv")
        self.path = path
        self._read = partial(read, path, check_row, texts)
        self.rows = self._read()
        self._lock = threading.Lock()

    def find(self, part: P) -> list[Row]:
        """The rows of a part; none of one that has not finished."""
        return [row for row in self.rows if _is(row, part)]

    def count(self, asked: Sequence[P]) -> int:
        """How many of these have finished."""
        return sum(bool(self.find(part)) for part in asked)

    def said(self, asked: Sequence[P], what: str) -> str:
        """Such as: 4 cells, 1 of them in cells.csv."""
        return f"{len(asked)} {what}, {self.count(asked)} of them in {self.path}"

    def left(self, asked: Sequence[P], what: str, settings_of: Callable[[P], str], train: bool) -> list[P]:
        """Those of `asked` that are to be done: that have no rows, and none where `train` is False.

        Raises UserError for rows that were measured under other settings, and where without training none is there.
        """
        for part in asked:
            if self.find(part):
                self.check(part, settings_of(part))
        if not train and not self.count(asked):
            raise UserError(f"train=false: none of the {len(asked)} {what} is in {self.path}")
        return [part for part in asked if train and not self.find(part)]

    def check(self, part: P, settings: str) -> None:
        """Raises UserError if a part's rows were measured under other settings."""
        for row in self.find(part):
            if not same_settings(row.get("settings"), settings):
                raise UserError(
                    f"results={self.path}: its rows {part.name} were measured with {row.get('settings')}, and what "
                    f"is asked for has {settings}; choose another results="
                )

    def add(self, part: P, rows: Sequence[Row]) -> None:
        """Keep a finished part, durably, beside those that other processes have added since."""
        with self.turn():
            self.put(part, rows)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the file, which one thread of one process may `put` to. Raises UserError if another does not let go."""
        with self._lock, turn(self.path):
            yield

    def put(self, part: P, rows: Sequence[Row]) -> None:
        """What `add` does within a `turn`."""
        others = [row for row in self._read() if not _is(row, part)]
        self.rows = [*others, *({**vars(part), **row} for row in rows)]
        write(self.path, self.rows)


class CellResults(Generic[P]):
    """Parts of one row each, `cells`, and in ``<stem>_points.csv`` beside them of several, `points` along the way."""

    def __init__(
        self,
        path: Path,
        check_cell: Callable[[Row, str], None],
        check_point: Callable[[Row, str], None],
        texts: Collection[str] = (),
    ):
        self.cells: Results[P] = Results(path, check_cell, texts)
        self.points: Results[P] = Results(path.with_name(f"{path.stem}_points.csv"), check_point, texts)

    def add(self, cell: P, row: Row, points: Sequence[Row]) -> None:
        """As `Results.add`; the points come first, so that a row has all of its own."""
        with self.cells.turn():
            self.points.put(cell, points)
            self.cells.put(cell, [row])


def _is(row: Row, part: Part) -> bool:
    return vars(part).items() <= row.items()
