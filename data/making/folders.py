"""Images found in a folder. A caption is the text file beside an image; the first folder's name is a class.

Where no image has a text file, the class's name is the caption, and a folder without classes is images alone.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ldm.data.errors import BadSample
from ldm.data.image_names import IMAGE_EXTENSIONS
from ldm.data.making.files import MAX_TEXT_BYTES, read_file
from ldm.data.making.sources import LeftOut, Problem, Source, Sources
from ldm.data.making.walk import Walk, unused_texts, walk
from ldm.data.members import is_unicode, read_text, says_something
from ldm.data.user_error import UserError


@dataclass
class _Seen:
    """The captions of a folder while it is read."""

    walked: Walk
    numbers: Mapping[str, int]  # of the classes
    texts: Mapping[str, str]  # picture -> the text file beside it
    named_after_class: list[str] = field(default_factory=list)

    def source(self, name: str) -> Source:
        """One picture with what is known about it."""
        facts: dict[str, Any] = {}
        problem = None
        try:
            if self.texts or self.numbers:
                facts["caption"] = self._caption(name)
        except BadSample as error:
            problem = Problem.of(error)
        class_name = class_of(name)
        if class_name is not None:
            facts |= {"class": class_name, "label": self.numbers[class_name]}
        return Source(self.walked.folder / name, name, json.dumps(facts, ensure_ascii=False), problem)

    def _caption(self, name: str) -> str:
        if name in self.texts:
            return _read_caption(self.walked.folder, self.texts[name])
        class_name = class_of(name)
        if class_name is None:
            raise BadSample("missing caption", f"no {PurePosixPath(name).stem}.txt beside it")
        if not is_unicode(class_name):
            raise BadSample("not utf-8", "its class, the folder's name, is its caption")
        caption = class_name.replace("_", " ").replace("-", " ").strip()
        if not caption:
            raise BadSample("missing caption", "no text file beside it, and its folder's name is no caption")
        self.named_after_class.append(name)
        return caption


def scan(folder: Path, members: Sequence[str] = ()) -> Sources:
    """All images below a folder, but for `members` of others, with what their names and neighbours say."""
    if not folder.is_dir():
        raise UserError(f"source={folder} is neither a folder nor a table")
    found = walk(folder)
    found.pictures = _without_members(found.pictures, members)
    if not found.pictures:
        raise UserError(f"source={folder} holds no images ({', '.join(IMAGE_EXTENSIONS)}){_instead(found.left_out)}")
    class_names = sorted({name for name in map(class_of, found.pictures) if name is not None})
    beside = {name: text for name in found.pictures if (text := found.text_of(name)) is not None}
    seen = _Seen(found, {name: number for number, name in enumerate(class_names)}, beside)
    sources = [seen.source(name) for name in found.pictures]
    return Sources(sources, class_names, found.left_out, _notes(seen))


def _without_members(pictures: list[str], members: Sequence[str]) -> list[str]:
    """x.depth.png is no picture of its own where there is a picture x and depth.png is a member."""
    stems = {name.rpartition(".")[0] for name in pictures}
    of_others = {f"{stem}.{member}" for stem in stems for member in members}
    return [name for name in pictures if name not in of_others] if members else pictures


def class_of(name: str) -> str | None:
    """The first folder of a picture's name."""
    first, slash, _ = name.partition("/")
    return first if slash else None


def _read_caption(folder: Path, name: str) -> str:
    try:
        text = read_text(read_file(folder / name, MAX_TEXT_BYTES)).strip()
    except BadSample as error:
        raise BadSample(error.kind, f"{name}: {error}") from None
    if not says_something(text):
        raise BadSample("missing caption", f"{name} is empty")
    return text


def _instead(left_out: list[LeftOut]) -> str:
    """What a folder without images contains instead."""
    if not left_out:
        return ""
    kind, count = Counter(row.kind for row in left_out).most_common(1)[0]
    first = next(row for row in left_out if row.kind == kind)
    return f"; left out, {kind}: {count}, the first {first.name!r} ({first.reason})"


# -- notes ---------------------------------------------------------------------------------------------------------


def _notes(seen: _Seen) -> list[str]:
    """Notes about what is valid but may not be intended."""
    found, texts = seen.walked, seen.texts
    notes = []
    if not texts and not seen.numbers:
        notes.append("no image has a text file beside it: images alone, without captions")
    if texts and seen.named_after_class:
        notes.append(
            f"{len(seen.named_after_class)} of {len(found.pictures)} images have no text file beside them; their "
            f"caption is their class's name; the first: {seen.named_after_class[0]!r}"
        )
    shared = Counter(texts.values())
    several = [name for name in found.pictures if name in texts and shared[texts[name]] > 1]
    if several:
        notes.append(f"{len(several)} images share the text file beside them with another; the first: {several[0]!r}")
    there = {name.rpartition(".")[0] for name in found.pictures}
    parts = [name for name in found.pictures if name.rpartition(".")[0].rpartition(".")[0] in there]
    if parts:
        notes.append(
            f"{len(parts)} images are named like a part of another, such as its mask; each is taken as an image of its "
            f"own; the first: {parts[0]!r}"
        )
    unused = unused_texts(found, set(texts.values()))
    if unused:
        notes.append(f"{len(unused)} text files belong to no image by their name; the first: {unused[0]!r}")
    if found.tables:
        notes.append(f"{found.tables[0]!r} is a table, and was not read: source= takes it in the folder's place")
    alike = Counter(unicodedata.normalize("NFC", name).casefold() for name in seen.numbers)
    twins = [name for name in seen.numbers if alike[unicodedata.normalize("NFC", name).casefold()] > 1]
    if twins:
        notes.append(f"classes whose names differ in case or spelling alone are different classes: {twins}")
    return notes
