"""The formats of tables: csv, tsv, jsonl and parquet as rows. What is wrong with a row is told, and the row passed
over; what is wrong with the whole is a ValueError that names the file.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from ldm.data.errors import BadSample
from ldm.data.making.files import read_start, reason_of
from ldm.data.members import read_text
from ldm.data.user_error import UserError

Row = dict[str, Any]
Placed = tuple[str, Row]  # where it stands in the file, and what it says
Told = Callable[[str, str, str], None]  # where, the kind of fault, what was seen
MAX_ROW_CHARS = 1 << 20
BATCH_ROWS = 128  # of parquet: what is small in the file may be large in memory
WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")  # how UTF-16 and UTF-32 begin


# -- csv and tsv ---------------------------------------------------------------------------------------------------


class _Lines(Iterator[str]):
    """Lines of a file; of one that is longer than any row only the beginning, and `cut` says so."""

    def __init__(self, file: TextIO):
        self._file = file
        self.cut = False

    def __next__(self) -> str:
        line = rest = self._file.readline(MAX_ROW_CHARS)
        if not line:
            raise StopIteration
        while len(rest) == MAX_ROW_CHARS and rest[-1] not in "\r\n":
            self.cut = True
            rest = self._file.readline(MAX_ROW_CHARS)
        return line


def read_csv(path: Path, tell: Told, delimiter: str = ",") -> Iterator[Placed]:
    """Rows under the names of the first line; all values are text."""
    _refuse_other_encodings(path)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _Lines(file)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        names = _header(path, reader)
        while True:
            begin = reader.line_num + 1
            lines.cut = False
            try:
                cells = next(reader, None)
                if cells is None:
                    return
                if cells:
                    yield _place(begin, reader.line_num), _row(names, cells, lines.cut)
            except csv.Error as error:
                tell(_place(begin, reader.line_num), "broken row", str(error))
            except BadSample as error:
                tell(_place(begin, reader.line_num), error.kind, str(error))


def read_tsv(path: Path, tell: Told) -> Iterator[Placed]:
    """As `read_csv`, with tabs."""
    return read_csv(path, tell, "\t")


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        names = next((cells for cells in reader if cells), [])
        read_text(_written(names))
    except csv.Error as error:
        raise UserError(f"{path}, line 1: {error}") from None
    except BadSample as error:
        raise UserError(f"{path}, line 1: {error.kind}: {error}") from None
    if len(names) in (1, 2) and names[0].lower() in ("sep=;", "sep=", "sep=|", "sep=\t"):
        raise UserError(
            f"{path}: its first line is {names[0]!r}, a word for Excel; take it away, and separate by commas"
        )
    if len(names) == 1 and ";" in names[0]:
        raise UserError(f"{path}: its columns are separated by semicolons; save it with commas, or with tabs as .tsv")
    _refuse_twins(path, names)
    return names


def _row(names: list[str], cells: list[str], cut: bool) -> Row:
    if cut:
        raise BadSample("broken row", f"longer than {MAX_ROW_CHARS} characters")
    if len(cells) > len(names):
        raise BadSample("broken row", "more cells than the header has columns")
    text = _written(cells)
    if b"\0" in text:
        raise BadSample("broken row", "it holds NUL bytes")
    read_text(text)
    return {**dict.fromkeys(names), **dict(zip(names, cells, strict=False))}


def _written(cells: list[str]) -> bytes:
    """The bytes that the cells were read from."""
    return "\n".join(cells).encode("utf-8", "surrogateescape")


def _place(first: int, last: int) -> str:
    return f"line {first}" if last <= first else f"lines {first} to {last}"


# -- jsonl ---------------------------------------------------------------------------------------------------------


def read_jsonl(path: Path, tell: Told) -> Iterator[Placed]:
    """A JSON object on each line."""
    _refuse_other_encodings(path)
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_ROW_CHARS):
            number += 1
            rest = line
            while len(rest) == MAX_ROW_CHARS and not rest.endswith(b"\n"):
                rest = file.readline(MAX_ROW_CHARS)
            if not line.strip():
                continue
            try:
                yield f"line {number}", _object(line, cut=rest is not line)
            except BadSample as error:
                tell(f"line {number}", error.kind, str(error))


def _object(line: bytes, cut: bool) -> Row:
    if cut:
        raise BadSample("broken row", f"longer than {MAX_ROW_CHARS} bytes")
    try:
        row = json.loads(read_text(line), object_pairs_hook=_once)
    except BadSample:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of more than 4,300 digits
        raise BadSample("broken row", str(error)) from None
    if not isinstance(row, dict):
        raise BadSample("broken row", "not a JSON object")
    return row


def _once(pairs: list[tuple[str, Any]]) -> Row:
    """An object from its pairs; BadSample if a key occurs twice with different values."""
    found = dict(pairs)
    for name, value in pairs if len(found) != len(pairs) else ():
        if value != found[name]:
            raise BadSample("broken row", f"it has {name!r} twice, and not the same")
    return found


# -- parquet -------------------------------------------------------------------------------------------------------


def read_parquet(path: Path, tell: Told) -> Iterator[Placed]:
    """Rows of a parquet file."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"source={path}: parquet needs pyarrow: pip install 'ldm-trainer[parquet]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            _refuse_twins(path, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(BATCH_ROWS):
                for row in _rows(batch):
                    number += 1
                    if isinstance(row, Exception):
                        tell(f"row {number}", "broken row", _one_line(row))
                    else:
                        yield f"row {number}", row
    except GeneratorExit:
        raise
    except Exception as error:  # on damaged bytes its readers raise nearly anything
        raise UserError(f"{path}: not to be read as parquet: {_one_line(error)}") from None


def _rows(batch: Any) -> Iterator[Row | Exception]:
    """Rows as Python's values; in place of one that has none (dates before the year 1, broken text), the reason."""
    try:
        yield from batch.to_pylist()
    except Exception:
        for place in range(batch.num_rows):
            try:
                yield batch.slice(place, 1).to_pylist()[0]
            except Exception as error:
                yield error


def _one_line(error: Exception) -> str:
    text = reason_of(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"[:300]


# -- all -----------------------------------------------------------------------------------------------------------


def _refuse_other_encodings(path: Path) -> None:
    """ValueError where a text table is none, or not UTF-8 from its first bytes on."""
    try:
        start = read_start(path, 4096)
        if start.startswith(WIDE_MARKS):
            read_text(start)  # names the encoding
    except BadSample as error:
        raise UserError(f"{path}: {error.kind}: {error}; save the table as UTF-8") from None
    if b"\0" in start.partition(b"\n")[0]:
        raise UserError(f"{path}: not utf-8: NUL bytes in its first line; save the table as UTF-8 text")


def _refuse_twins(path: Path, names: list[str]) -> None:
    twins = [name for name, count in Counter(names).items() if count > 1 and name]
    if twins:
        raise UserError(f"{path}: several columns are called {twins[0]!r}; rename all but one")


TABLES: dict[str, Callable[[Path, Told], Iterator[Placed]]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}
