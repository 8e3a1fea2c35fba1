"""The walk over a folder: every file that looks like a picture is found, or left out by name.

Links to folders are followed, each folder once: those that lie in the source come before links to them. What systems
and editors put among images (`.thumbnails`, `__MACOSX`, `@eaDir`, `._a.jpg`) is left out.
"""

import os
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ldm.data.errors import BadSample
from ldm.data.image_names import IMAGE_EXTENSIONS
from ldm.data.making.files import PICTURE_EXTENSIONS, format_of, read_start, reason_of
from ldm.data.making.sources import LeftOut

SYSTEM_NAMES = frozenset(
    {
        "__macosx",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "@tmp",
        "@__thumb",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "lost+found",
        "__pycache__",
        "recycler",
    }
) | {"system volume information"}
TABLE_EXTENSIONS = ("csv", "tsv", "jsonl", "parquet")
SNIFFED_BYTES = 32


@dataclass
class Walk:
    """What lies below `folder`; names are relative to it, with slashes, in the order of the alphabet."""

    folder: Path
    pictures: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    texts: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # (folder, normal stem) -> names

    def leave_out(self, name: str, kind: str, reason: str) -> None:
        """Record a file or folder that is not used."""
        self.left_out.append(LeftOut(name, kind, reason))

    def text_of(self, picture: str) -> str | None:
        """The text file beside a picture: x.txt, else x.TXT and the like, else a name of the same normal form."""
        name = PurePosixPath(picture)
        names = self.texts.get((str(name.parent), _normal(name.stem)), [])
        return min(names, key=lambda text: _distance(PurePosixPath(text), name.stem), default=None)


def walk(folder: Path) -> Walk:
    """Find all pictures and texts (see above); only files whose names do not tell their kind are opened."""
    found = Walk(folder)
    seen: set[tuple[int, int]] = set()
    waiting = [("", False)]
    while waiting:
        links: list[tuple[str, bool]] = []
        for name, hidden in waiting:
            links += _descend(found, name, hidden, seen)
        waiting = sorted(links)
    found.pictures.sort()
    found.left_out.sort()
    return found


def is_system(name: str) -> bool:
    """Whether a file or folder of this name is put there by a system or an editor, and hidden from people."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


def _descend(found: Walk, start: str, hidden: bool, seen: set[tuple[int, int]]) -> list[tuple[str, bool]]:
    """Read a folder and those below it that are no links; returns the links to folders."""
    links: list[tuple[str, bool]] = []
    waiting = [(start, hidden)]
    while waiting:
        name, hidden = waiting.pop()
        try:
            if not _first_time(found, name, seen):
                continue
            with os.scandir(found.folder / name) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            found.leave_out(name or ".", "unreadable folder", reason_of(error))
            continue
        for entry in listed:
            place = f"{name}/{entry.name}" if name else entry.name
            inside = hidden or is_system(entry.name)
            if entry.is_dir(follow_symlinks=False):
                waiting.append((place, inside))
            elif _is_link_to_folder(entry):
                links += [] if inside else [(place, inside)]
            else:
                _take(found, place, inside)
    return links


def _first_time(found: Walk, name: str, seen: set[tuple[int, int]]) -> bool:
    """Whether a folder has not been read yet; if it has, the second way to it is named."""
    path = found.folder / name
    state = os.stat(path)
    identity = (state.st_dev, state.st_ino)
    if identity in seen or (os.path.islink(path) and name and _holds(path, found.folder)):
        found.leave_out(name, "repeated folder", "a link to what holds it, or to a folder that is read already")
        return False
    seen.add(identity)
    return True


def _holds(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)) in Path(os.path.realpath(folder)).parents


def _is_link_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:  # a circular link; it is reported as a file
        return False


def _take(found: Walk, name: str, hidden: bool) -> None:
    """Sort a file into pictures, texts and what is left out."""
    place = PurePosixPath(name)
    extension = place.suffix.lower()[1:]
    looks_like_picture = extension in PICTURE_EXTENSIONS or extension in IMAGE_EXTENSIONS
    if hidden:
        if looks_like_picture:
            found.leave_out(name, "hidden or system file", "put there by a system or an editor, by its name")
    elif extension in IMAGE_EXTENSIONS:
        found.pictures.append(name)
    elif looks_like_picture:
        found.leave_out(name, "unknown format", f".{extension} is not read ({', '.join(IMAGE_EXTENSIONS)} are)")
    elif extension == "txt":
        found.texts.setdefault((str(place.parent), _normal(place.stem)), []).append(name)
    elif extension in TABLE_EXTENSIONS:
        found.tables.append(name)
    elif (picture := _sniff(found.folder / name)) is not None:
        ending = f"the ending {place.suffix}" if extension else "no ending"
        found.leave_out(name, "unknown format", f"begins like a {picture} file, but its name has {ending}")


def _sniff(path: Path) -> str | None:
    """The picture format that a file begins like; None where it is none, or cannot be read."""
    try:
        return format_of(read_start(path, SNIFFED_BYTES))
    except BadSample:
        return None


def _normal(stem: str) -> str:
    """A name in one Unicode normal form: macOS stores accented letters decomposed, other systems do not."""
    return unicodedata.normalize("NFC", stem)


def _distance(text: PurePosixPath, stem: str) -> tuple[bool, bool, str]:
    return text.stem != stem, text.suffix != ".txt", text.name


def unused_texts(found: Walk, used: set[str]) -> list[str]:
    """Text files that belong to no picture, not even to one that is left out."""
    left_out = {(str(name.parent), _normal(name.stem)) for name in (PurePosixPath(row.name) for row in found.left_out)}
    return sorted(
        name for place, names in found.texts.items() if place not in left_out for name in names if name not in used
    )
