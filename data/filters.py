"""Which training samples are used, by what the image's header and the json metadata say, and a list to exclude.

A sample is removed by the first rule it breaks. An image that cannot be read breaks none: it is left to the reader, who
skips and counts it. Metadata that cannot be read, or lacks a field, breaks the rules about that field.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from math import inf
from pathlib import Path
from sys import maxsize
from typing import Any, TypedDict

from ldm.data.decoding import read_picture
from ldm.data.errors import BadSample
from ldm.data.image_names import IMAGE_EXTENSIONS
from ldm.data.members import read_entries, read_text
from ldm.data.user_error import UserError

# A hash alone on its line, in capitals or not, or before the name of its file, as sha256sum writes it.
SHA256 = re.compile(r"([0-9a-fA-F]{64})( [ *].+)?")


class FilterRules(TypedDict, total=False):
    """The keys of `data.filters`; see Filters."""

    min_size: int | None
    aspect: Sequence[float | None] | None
    ranges: Mapping[str, Sequence[float | None]] | None
    values: Mapping[str, Sequence[str | int | bool | None]] | None
    exclude: str | None


class Filters:
    """Rules for the members of a sample; each is off where it is null.

    `min_size`: pixels of the shorter side, at least. `aspect`: width / height, [from, to]. `ranges`: [from, to] for
    fields of the json; null leaves a side open. `values`: what fields of the json may be. `exclude`: a file that has
    in each line a key, or the SHA-256 of an image file, alone or before a name as sha256sum writes it.
    """

    def __init__(
        self,
        min_size: int | None = None,
        aspect: Sequence[float | None] | None = None,
        ranges: Mapping[str, Sequence[float | None]] | None = None,
        values: Mapping[str, Sequence[str | int | bool | None]] | None = None,
        exclude: str | None = None,
    ):
        if min_size is not None and not _is_number(min_size):
            raise UserError(f"data.filters.min_size={min_size!r} is not a number of pixels")
        self.min_size = min_size
        self.aspect = None if aspect is None else _range("aspect", aspect)
        self.ranges = {name: _range(f"ranges.{name}", bounds) for name, bounds in _mapping("ranges", ranges).items()}
        self.values = {
            name: _choices(f"values.{name}", allowed) for name, allowed in _mapping("values", values).items()
        }
        self.exclude = exclude

    @cached_property
    def excluded(self) -> frozenset[str]:
        """The lines of the file."""
        return frozenset() if self.exclude is None else _lines(Path(self.exclude).expanduser())

    @cached_property
    def hashes(self) -> frozenset[str]:
        """Those that are hashes, in small letters."""
        found = map(SHA256.fullmatch, self.excluded)
        return frozenset(match[1].lower() for match in found if match)

    @property
    def needs_size(self) -> bool:
        """Whether a rule is about the size of the image."""
        return self.min_size is not None or self.aspect is not None

    @property
    def extensions(self) -> frozenset[str]:
        """The members that the rules look at, beside the image."""
        return frozenset(["json"] if self.ranges or self.values else [])

    @property
    def images(self) -> tuple[str, ...]:
        """Image extensions, of which the first that a sample has is its image; empty if no rule looks at the image."""
        return IMAGE_EXTENSIONS if self.needs_size or self.hashes else ()

    @property
    def names(self) -> list[str]:
        """The names of the rules in the order they are applied to a sample; empty if all are off."""
        names = [] if self.exclude is None else ["exclude"]
        names += ["min_size"] if self.min_size is not None else []
        names += ["aspect"] if self.aspect is not None else []
        return [*names, *(f"ranges.{name}" for name in self.ranges), *(f"values.{name}" for name in self.values)]

    @cached_property
    def identity(self) -> str:
        """SHA-256 over everything that affects the decisions."""
        facts = [self.min_size, self.aspect, self.ranges, self.values, sorted(self.excluded | self.hashes)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def broken(self, key: str, members: Mapping[str, bytes]) -> str | None:
        """The first rule that a sample breaks; None if it is kept."""
        return next(self._all_broken(key, members), None)

    def _all_broken(self, key: str, members: Mapping[str, bytes]) -> Iterator[str]:
        image = next((members[name] for name in IMAGE_EXTENSIONS if name in members), None)
        if key in self.excluded or (self.hashes and image and hashlib.sha256(image).hexdigest() in self.hashes):
            yield "exclude"
        size = stored_size(image) if self.needs_size and image else None
        if size and self.min_size is not None and min(size) < self.min_size:
            yield "min_size"
        if size and self.aspect and not self.aspect[0] <= size[0] / size[1] <= self.aspect[1]:
            yield "aspect"
        facts = _facts(members.get("json")) if self.ranges or self.values else {}
        for name, (low, high) in self.ranges.items():
            if not (_is_number(facts.get(name)) and low <= facts[name] <= high):
                yield f"ranges.{name}"
        for name, allowed in self.values.items():
            if not any(facts.get(name) == value for value in allowed):
                yield f"values.{name}"


def read_filters(filters: FilterRules | None) -> Filters:
    """The rules that `data.filters` holds."""
    names = FilterRules.__annotations__
    for name in filters or {}:
        if name not in names:
            raise UserError(f"data.filters.{name}: no such key (there are {', '.join(names)})")
    return Filters(**(filters or {}))


def stored_size(content: bytes) -> tuple[int, int] | None:
    """(width, height) of an image as it is to be seen, from its header alone; None if it cannot be read."""
    try:
        return read_picture(content, 1, max_pixels=maxsize).upright
    except BadSample:  # the reader will name it
        return None


def _facts(content: bytes | None) -> Mapping[str, Any]:
    try:
        return read_entries(content or b"")
    except BadSample:
        return {}


def _mapping(name: str, rules: Any) -> Mapping[str, Any]:
    if rules is not None and not isinstance(rules, Mapping):
        raise UserError(f"data.filters.{name}={rules!r}: expected fields of the json and what is allowed of each")
    return rules or {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _range(name: str, bounds: Sequence[float | None]) -> tuple[float, float]:
    is_pair = isinstance(bounds, Sequence) and len(bounds) == 2
    if not is_pair or not all(bound is None or _is_number(bound) for bound in bounds):
        raise UserError(f"data.filters.{name}={bounds!r}: expected [from, to], null for an open side")
    low, high = -inf if bounds[0] is None else bounds[0], inf if bounds[1] is None else bounds[1]
    if not low <= high:
        raise UserError(f"data.filters.{name}={bounds!r}: nothing lies between")
    return low, high


def _choices(name: str, allowed: Sequence[Any]) -> tuple[Any, ...]:
    if not isinstance(allowed, list | tuple) or not allowed:
        raise UserError(f"data.filters.{name}={allowed!r}: expected a list of what is allowed")
    return tuple(allowed)


def _lines(path: Path) -> frozenset[str]:
    try:
        lines = {line.strip() for line in read_text(path.read_bytes(), max_bytes=None).splitlines()}
    except (OSError, BadSample) as error:
        raise UserError(f"data.filters.exclude={path}: cannot be read ({error})") from None
    return frozenset(lines - {""})
