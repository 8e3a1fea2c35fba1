"""Images listed in a table, one row each; rows of one image become its several captions.

Columns that are neither the image nor its caption keep their names in the .json member. In csv and tsv, what looks like
a number there is one; a caption is text as it is written.
"""

import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ldm.data.errors import BadSample
from ldm.data.making.formats import TABLES, Row
from ldm.data.making.inside import Folder
from ldm.data.making.settings import Settings, place
from ldm.data.making.sources import LeftOut, Problem, Source, Sources
from ldm.data.members import is_unicode, says_something
from ldm.data.user_error import UserError

NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})(\.\d+)?([eE][-+]?\d{1,3})?")
NAME = "name"  # of the .json: the place of the image in its source
BYTES = "bytes in a column"
TYPELESS = (".csv", ".tsv")
HEAD_ROWS = 20  # that show which columns a table has: objects of a jsonl need not all have the same
MAX_DEPTH = 50  # of lists and mappings in one another


@dataclass(slots=True)
class _Image:
    """An image while its rows are read."""

    path: Path
    name: str
    facts: str
    problem: Problem | None
    captions: dict[str, None] = field(default_factory=dict)  # a set that keeps its order


def read_table(settings: Settings) -> Sources:
    """The images of `settings.source`; raises ValueError if it is no table or lacks a column."""
    path = settings.source
    folder = Folder(place("images", settings.images) if settings.images else path.parent)
    if not folder.path.is_dir():
        raise UserError(f"images={settings.images} is not a folder")
    images: dict[str, _Image] = {}
    left_out: list[LeftOut] = []

    def tell(where: str, kind: str, reason: str) -> None:
        left_out.append(LeftOut(f"{path.name}, {where}", kind, reason))

    rows = TABLES[path.suffix.lower()](path, tell)
    head = list(islice(rows, HEAD_ROWS))
    if head:
        _check_columns([row for _, row in head], settings)
    elif not left_out:
        raise UserError(f"source={path} has no rows")
    lost: dict[str, dict[str, None]] = {}  # column -> the images of which it has several values
    for where, row in chain(head, rows):
        try:
            _add(images, row, settings, folder, lost)
        except BadSample as error:
            tell(where, error.kind, str(error))
    hidden = NAME not in (settings.image_column, settings.caption_column) and any(NAME in row for _, row in head)
    notes = [f"the column {NAME} is not kept: the .json has the image's own name there"] if hidden else []
    notes += [
        f"rows of one image differ in {column} ({len(names)} images, the first: {next(iter(names))!r}); that of the "
        "first row is kept"
        for column, names in lost.items()
    ]
    return Sources([_source(image, settings) for image in images.values()], left_out=left_out, notes=notes)


def _add(
    images: dict[str, _Image], row: Row, settings: Settings, folder: Folder, lost: dict[str, dict[str, None]]
) -> None:
    """Take a row into the image that it names; BadSample if it cannot be used.

    `lost` gets the names of images, by the columns in which another row of theirs had said something else.
    """
    name = row.get(settings.image_column)
    if name is None or name == "":
        raise BadSample("row without an image", f"nothing under {settings.image_column}")
    if not isinstance(name, str):
        raise BadSample("broken row", f"{settings.image_column} holds {type(name).__name__}, not a file name")
    if not is_unicode(name):
        raise BadSample("not utf-8", f"{settings.image_column} holds half a surrogate pair")
    captions = _captions(row.get(settings.caption_column)) if settings.caption_column else []
    try:
        path, problem = folder.find(name), None
    except BadSample as error:
        path, problem = folder.path / name, Problem.of(error)
    identity = str(path)  # a name may be spelled ./a.png and a.png
    if identity not in images:
        images[identity] = _Image(path, name, _facts(row, settings), problem)
    elif (facts := _facts(row, settings)) != images[identity].facts:
        now, before = json.loads(facts), json.loads(images[identity].facts)
        for column in dict.fromkeys([*before, *now]):
            if before.get(column) != now.get(column):
                lost.setdefault(column, {})[images[identity].name] = None
    images[identity].captions |= dict.fromkeys(captions)


def _source(image: _Image, settings: Settings) -> Source:
    if not settings.caption_column:
        return Source(image.path, image.name, image.facts, image.problem)
    captions = list(image.captions)
    missing = None if captions else Problem("missing caption", f"nothing under {settings.caption_column}")
    facts = {**json.loads(image.facts), "caption": captions[0] if len(captions) == 1 else captions}
    return Source(image.path, image.name, _json(facts), image.problem or missing)


# -- values --------------------------------------------------------------------------------------------------------


def _captions(value: Any) -> list[str]:
    texts = [_text(entry) for entry in (value if isinstance(value, list) else [value])]
    return [text for text in texts if text]


def _text(value: Any) -> str:
    """A caption; '' for none. A number is its digits, for a caption may be 7."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise BadSample("caption is no text", f"it is {type(value).__name__}")
    text = str(value).strip()
    if not is_unicode(text):
        raise BadSample("not utf-8", "the caption holds half a surrogate pair")
    if "\0" in text:
        raise BadSample("not utf-8", "the caption holds zero bytes")
    return text if says_something(text) else ""


def _facts(row: Row, settings: Settings) -> str:
    """The other columns as the text of a JSON object; a value that is missing is left out."""
    facts = {}
    for name, value in row.items():
        if name in (settings.image_column, settings.caption_column):
            continue
        if settings.source.suffix.lower() in TYPELESS:
            value = _typed(value)
        value = _plain(value, name)
        if value is not None:
            facts[name] = value
    return _json(facts)


def _typed(text: str | None) -> Any:
    if text is None or not NUMBER.fullmatch(text):
        return text
    number = float(text) if set(text) & set(".eE") else int(text)
    return number if math.isfinite(number) else text


def _plain(value: Any, column: str, depth: int = 0) -> Any:
    """A value as JSON can represent it; NaN and infinity become None."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth > MAX_DEPTH:
        raise BadSample("broken row", f"the column {column} has lists in lists, deeper than {MAX_DEPTH}")
    if isinstance(value, Mapping):
        return {str(key): _plain(entry, column, depth + 1) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, column, depth + 1) for entry in value]
    if isinstance(value, bytes | bytearray):
        raise BadSample(BYTES, f"the column {column} holds bytes, which a .json cannot keep; drop it")
    return str(value)  # dates and the like


def _json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, ensure_ascii=False, allow_nan=False)


def _check_columns(head: list[Row], settings: Settings) -> None:
    """ValueError if the first rows show that the table does not fit the settings."""
    columns = list(dict.fromkeys(name for row in head for name in row))
    for key, column in (("image_column", settings.image_column), ("caption_column", settings.caption_column)):
        if column in columns or (key == "caption_column" and not column):
            continue
        near = difflib.get_close_matches(column, columns, n=1, cutoff=0.5)
        hint = f"; did you mean {key}={near[0]}?" if near else ""
        none = f" ({key}= for none)" if key == "caption_column" else ""
        raise UserError(f"{key}={column}: {settings.source} has the columns {', '.join(columns)}{hint}{none}")
    names = [row[settings.image_column] for row in head if row.get(settings.image_column) is not None]
    if names and not any(isinstance(name, str) for name in names):
        kind = type(names[0]).__name__
        raise UserError(f"{settings.source}: image_column={settings.image_column} holds {kind}, not file names")
    for column in columns:
        faults = [_fault(row[column], column) for row in head if row.get(column) is not None]
        if faults and all(faults):
            raise UserError(f"{settings.source}: {faults[0]}")
    if settings.caption_column not in ("", "caption") and "caption" in columns:
        raise UserError(
            f"caption_column={settings.caption_column}: {settings.source} also has a column caption, which it would "
            f"hide; leave the key out and train with data.fields.caption.key={settings.caption_column}"
        )


def _fault(value: Any, column: str) -> str:
    """What keeps a column from being kept in a .json, going by one of its values; '' if nothing does."""
    try:
        _plain(value, column)
    except BadSample as error:
        return str(error) if error.kind == BYTES else ""
    return ""
