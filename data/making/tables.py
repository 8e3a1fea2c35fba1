"""Images listed in a table: csv, tsv, jsonl or parquet, one row each; rows of one image become its several captions.

Columns that are neither the image nor its caption keep their names in the .json member. In csv and tsv, what looks like
a number is one.
"""

import csv
import difflib
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data.making.settings import Settings
from data.making.sources import Source, Sources, image_problem

NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})(\.\d+)?([eE][-+]?\d{1,3})?")
Row = dict[str, Any]


def read_table(settings: Settings) -> Sources:
    """The images of `settings.source`; raises ValueError if a column is missing or a row cannot be read."""
    path = settings.source
    images = Path(settings.images) if settings.images else path.parent
    if not images.is_dir():
        raise ValueError(f"images={images} is not a folder")
    rows: dict[str, list[Row]] = {}
    for number, row in enumerate(TABLES[path.suffix.lower()](path)):
        if number == 0:
            _check_columns(row, settings)
        name = row.get(settings.image_column)
        name = f"row {number + 1} without an image" if name is None or name == "" else name
        if not isinstance(name, str):
            kind = type(name).__name__
            raise ValueError(f"{path}: image_column={settings.image_column} holds {kind}, not file names")
        rows.setdefault(name, []).append(row)
    if not rows:
        raise ValueError(f"source={path} has no rows")
    return Sources([_source(images / name, name, same, settings) for name, same in rows.items()])


def _source(path: Path, name: str, rows: list[Row], settings: Settings) -> Source:
    captions = [text for row in rows for text in _captions(row.get(settings.caption_column))]
    captions = list(dict.fromkeys(captions))
    facts = {key: value for key, value in rows[0].items() if _kept(value)}
    for column in (settings.image_column, settings.caption_column):
        facts.pop(column, None)
    problem = image_problem(path)
    if settings.caption_column:
        problem = problem or (None if captions else "missing caption")
        facts["caption"] = captions[0] if len(captions) == 1 else captions
    return Source(path, name, facts, problem)


def _captions(value: Any) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]


def _kept(value: Any) -> bool:
    """JSON has no word for what is missing, and none for numbers that are none."""
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _check_columns(row: Row, settings: Settings) -> None:
    for key, column in (("image_column", settings.image_column), ("caption_column", settings.caption_column)):
        if column in row or (key == "caption_column" and not column):
            continue
        near = difflib.get_close_matches(column, row, n=1, cutoff=0.5)
        hint = f"; did you mean {key}={near[0]}?" if near else ""
        none = f" ({key}= for none)" if key == "caption_column" else ""
        raise ValueError(f"{key}={column}: {settings.source} has the columns {', '.join(map(str, row))}{hint}{none}")
    for name, value in row.items():
        if isinstance(value, bytes):
            raise ValueError(f"{settings.source}: the column {name} holds bytes, which a .json cannot keep; drop it")
    if settings.caption_column not in ("", "caption") and "caption" in row:
        raise ValueError(
            f"caption_column={settings.caption_column}: {settings.source} also has a column caption, which it would "
            f"hide; leave the key out and train with data.fields.caption.key={settings.caption_column}"
        )


# -- formats -------------------------------------------------------------------------------------------------------


def _csv(path: Path, delimiter: str = ",") -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        try:
            for row in reader:
                if None in row:
                    raise ValueError(f"{path}, line {reader.line_num}: more cells than the header has columns")
                yield {key: _typed(value) for key, value in row.items()}
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: {error}") from None


def _tsv(path: Path) -> Iterator[Row]:
    return _csv(path, "\t")


def _typed(text: str | None) -> Any:
    if text is None or not NUMBER.fullmatch(text):
        return text
    return float(text) if set(text) & set(".eE") else int(text)


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: not a JSON object")
            yield row


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"source={path}: parquet needs pyarrow: pip install 'ldm[parquet]'") from None
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: {error}") from None


TABLES: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
