"""A set of prompts in categories and groups, each perhaps with a real picture of it, from a CSV or JSON file.

The layout of TeTIm-Eval (arXiv:2212.07839), ten categories in three groups, and of any other set like it.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.data.errors import BadSample
from ldm.data.members import read_text
from ldm.data.paths import HOME
from ldm.errors import UserError

BUILT_IN = HOME / "data" / "quickstart" / "prompts.csv"
NEEDED = ("prompt", "category", "group")
MAX_BYTES = 1 << 24  # of the file
REAL = "real"  # what the real pictures are called where models have their names


@dataclass(frozen=True)
class Prompt:
    """A text, its category and the group of that; `image`, a file or a member of a tar, is a real picture of it."""

    prompt: str
    category: str
    group: str
    image: str | None = None


def read_prompt_set(path: Path) -> list[Prompt]:
    """The prompts of a file: a CSV with a header, or a JSON list of objects. Their order is kept.

    Raises UserError naming the file and the row for one without a prompt, a category or a group, with more cells than
    the header has, a category in two groups, a prompt that is in its category twice, and pictures of some prompts only;
    FileNotFoundError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"prompts={path}: no such file; it is a CSV or a JSON list of {', '.join(NEEDED)}")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    try:
        rows = _json(content) if path.suffix == ".json" else _csv(content)
        prompts = [_prompt(row, number) for number, row in enumerate(rows, 1)]
        _check(prompts)
    except (BadSample, UserError) as error:
        raise UserError(f"prompts={path}: {error}") from error
    return prompts


def categories(prompts: Sequence[Prompt]) -> dict[str, str]:
    """The category -> its group, in the order of the prompts."""
    return {prompt.category: prompt.group for prompt in prompts}


def _csv(content: bytes) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(read_text(content, MAX_BYTES), newline=""))
    try:
        rows = [dict(row) for row in reader]
    except csv.Error as error:
        raise UserError(f"after line {reader.line_num}: {error}") from error
    for number, row in enumerate(rows, 1):
        if any(row.get(None, ())):  # type: ignore[call-overload]  # where the reader puts what has no name
            raise UserError(f"row {number} has more cells than the header; a text with a comma stands in quotes")
    return rows


def _json(content: bytes) -> list[dict[str, Any]]:
    try:
        rows = json.loads(read_text(content, MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot be read as JSON ({str(error)[:80]})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError("not a JSON list of objects")
    return rows


def _prompt(row: dict[str, Any], number: int) -> Prompt:
    found = {key: row.get(key) for key in (*NEEDED, "image")}
    texts = {key: value.strip() for key, value in found.items() if isinstance(value, str)}
    for key in NEEDED:
        if not texts.get(key):
            raise UserError(f"row {number} has no {key}; each row has {', '.join(NEEDED)}, and perhaps an image")
    if any("\ud800" <= letter <= "\udfff" for text in texts.values() for letter in text):
        raise UserError(f"row {number} has half a letter (a surrogate of UTF-16) in it")
    return Prompt(texts["prompt"], texts["category"], texts["group"], texts.get("image") or None)


def _check(prompts: list[Prompt]) -> None:
    if not prompts:
        raise UserError("no prompt in it")
    groups: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    for number, prompt in enumerate(prompts, 1):
        if groups.setdefault(prompt.category, prompt.group) != prompt.group:
            one, other = groups[prompt.category], prompt.group
            raise UserError(f"row {number}: category {prompt.category!r} is in the groups {one!r} and {other!r}")
        if (prompt.category, prompt.prompt) in seen:
            raise UserError(f"row {number}: {prompt.prompt!r} is in {prompt.category!r} twice")
        seen.add((prompt.category, prompt.prompt))
    without = [number for number, prompt in enumerate(prompts, 1) if prompt.image is None]
    if without and len(without) < len(prompts):
        raise UserError(f"row {without[0]} has no image and others have; give one for each prompt, or none at all")
