"""Images to be put into shards and what is known about each; this file finds them in folders.

A caption is the text file beside an image. The first folder's name is a class, and the caption where there is no text.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from data.decoding import IMAGE_EXTENSIONS


@dataclass(frozen=True)
class Source:
    """One image. `facts` go into its .json member; `problem` says why it cannot be used, if that is known already."""

    path: Path
    name: str  # no other source has the same
    facts: Mapping[str, Any]
    problem: str | None = None

    @property
    def rank(self) -> str:
        """A place in an order that mixes folders and depends on the name alone."""
        return hashlib.sha256(self.name.encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def key(self) -> str:
        """A webdataset key: no dots, no slashes, short, and unlike any other image's."""
        stem = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in PurePath(self.name).stem)
        return f"{stem[:60]}-{self.rank[:16]}"


@dataclass(frozen=True)
class Sources:
    """All images of a source and the names of their classes, in the order of the class numbers."""

    sources: list[Source]
    class_names: list[str] = field(default_factory=list)


def image_problem(path: Path) -> str | None:
    """What keeps a path from being read as an image, before it is opened."""
    if not path.is_file():
        return "image not found"
    return None if path.suffix.lower()[1:] in IMAGE_EXTENSIONS else "unknown format"


def scan(folder: Path) -> Sources:
    """All images below a folder with what their names and neighbours say."""
    if not folder.is_dir():
        raise ValueError(f"source={folder} is neither a folder nor a table")
    paths = sorted(path for path in folder.rglob("*") if image_problem(path) is None)
    if not paths:
        raise ValueError(f"source={folder} holds no images ({', '.join(IMAGE_EXTENSIONS)})")
    names = [path.relative_to(folder) for path in paths]
    class_names = sorted({name.parts[0] for name in names if len(name.parts) > 1})
    numbers = {name: number for number, name in enumerate(class_names)}
    return Sources([_source(path, name, numbers) for path, name in zip(paths, names, strict=True)], class_names)


def _source(path: Path, name: Path, numbers: Mapping[str, int]) -> Source:
    in_class = len(name.parts) > 1
    caption = text_beside(path)
    if caption is None and in_class and not path.with_suffix(".txt").exists():
        caption = name.parts[0].replace("_", " ").replace("-", " ")
    facts: dict[str, Any] = {"caption": caption}
    if in_class:
        facts |= {"class": name.parts[0], "label": numbers[name.parts[0]]}
    return Source(path, name.as_posix(), facts, None if caption else "missing caption")


def text_beside(path: Path) -> str | None:
    """The caption in the text file of an image's name; None where it is not there, empty or not UTF-8."""
    text = path.with_suffix(".txt")
    try:
        return text.read_text(encoding="utf-8").strip() or None
    except (FileNotFoundError, UnicodeDecodeError):
        return None
