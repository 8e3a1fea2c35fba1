"""A report as one folder: index.html with its style inside, images beside it, no script and nothing from elsewhere.

Sections hold items (Text, Table, Figure, Gallery, ImageGrid, Stats, Code, Fold): plain data, their text escaped.
Images inside the folder are linked where they lie, others are copied into its `assets/`.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup
from PIL import Image, UnidentifiedImageError

from ldm.errors import UserError
from ldm.files import write_bytes
from ldm.installed import spoken
from ldm.report.canvas import dark_path, narrow_path
from ldm.report.templates import style, template


@dataclass(frozen=True)
class Picture:
    """An image as the page links it; width and height in CSS pixels."""

    href: str
    width: int
    height: int
    crisp: bool = False
    dark: str = ""
    narrow: str = ""
    narrow_dark: str = ""


class Assets:
    """Turns image files into links that hold when the folder is moved; remembers what has to be copied."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.copies: dict[str, Path] = {}

    def picture(self, path: Path | str) -> Picture:
        """The link to an image and its size in its own pixels; a missing or unreadable one is a ValueError."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"report: image {path} does not exist; save it before write_report is called")
        try:
            with Image.open(path) as image:
                width, height = image.size
        except UnidentifiedImageError:
            raise UserError(f"report: {path} is not an image that can be read") from None
        place = path.resolve()
        if place.is_relative_to(self.folder):
            name = place.relative_to(self.folder).as_posix()
        else:
            # The digest in the name keeps two files of the same name apart, and one file used twice together.
            name = f"assets/{path.stem}-{hashlib.sha256(place.read_bytes()).hexdigest()[:8]}{path.suffix}"
            self.copies[name] = place
        return Picture(quote(name), width, height)


class Item(ABC):
    """A piece of a section."""

    @abstractmethod
    def html(self, assets: Assets) -> Markup:
        """The piece as markup; raises ValueError where its data do not fit together."""


@dataclass(frozen=True)
class Text(Item):
    """Prose; an empty line begins a new paragraph."""

    text: str

    def html(self, assets: Assets) -> Markup:
        return _macro("prose", self.text.strip().split("\n\n"))


@dataclass(frozen=True)
class Table(Item):
    """Rows of ready-made cells; columns in `numeric` are set flush right, cells (row, column) in `marked` bold."""

    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    numeric: Collection[int] = ()
    marked: Collection[tuple[int, int]] = ()

    def html(self, assets: Assets) -> Markup:
        for place, row in enumerate(self.rows):
            if len(row) != len(self.headers):
                raise UserError(
                    f"table {self.caption!r}: row {place} has {len(row)} cells for {len(self.headers)} headers"
                )
        return _macro("table", self)


@dataclass(frozen=True)
class Figure(Item):
    """A plot at two image pixels per CSS pixel; twins at `dark_path` and `narrow_path`, if any, serve such pages."""

    path: Path
    caption: str
    alt: str

    def html(self, assets: Assets) -> Markup:
        picture, path = assets.picture(self.path), Path(self.path)
        twins = {"dark": dark_path(path), "narrow": narrow_path(path), "narrow_dark": dark_path(narrow_path(path))}
        links: dict[str, Any] = {name: assets.picture(twin).href for name, twin in twins.items() if twin.is_file()}
        shown = replace(picture, width=picture.width // 2, height=picture.height // 2, **links)
        return _macro("figure", shown, self.caption, self.alt)


@dataclass(frozen=True)
class Cell:
    """Images side by side with a label and a quieter line below; without images, the heading of its row."""

    images: Sequence[Path] = ()
    label: str = ""
    sublabel: str = ""


@dataclass(frozen=True)
class ImageGrid(Item):
    """Images in rows and columns, each shown at most `size` CSS pixels wide; one row without headers flows over lines.

    A small image is enlarged by the largest whole factor that fits, its pixels square; a large one is scaled down.
    """

    rows: Sequence[Sequence[Cell]]
    headers: Sequence[str] = ()
    caption: str = ""
    size: int = 128

    def html(self, assets: Assets) -> Markup:
        for place, row in enumerate(self.rows):
            if self.headers and len(row) != len(self.headers):
                raise UserError(
                    f"grid {self.caption!r}: row {place} has {len(row)} cells for {len(self.headers)} headers"
                )
        rows = [
            [(cell, [self._fit(assets.picture(path)) for path in cell.images]) for cell in row] for row in self.rows
        ]
        if len(rows) == 1 and not self.headers:
            return _macro("flow", self.caption, rows[0])
        columns = max((sum(bool(shown) for _, shown in row) for row in rows), default=0)
        each = max((len(shown) for row in rows for _, shown in row), default=0)
        sided = any(row and not row[0][1] for row in rows)  # whether rows have a heading on their left
        return _macro("grid", self, rows, max(columns, 1), max(each, 1), sided)

    def _fit(self, picture: Picture) -> Picture:
        longest = max(picture.width, picture.height)
        scale = self.size // longest if longest <= self.size else self.size / longest
        width, height = round(scale * picture.width), round(scale * picture.height)
        return replace(picture, width=width, height=height, crisp=longest < self.size)


@dataclass(frozen=True)
class Gallery(Item):
    """Groups of images, each with its label: `across` images side by side in a group, groups side by side on the page.

    `wide` and `narrow` are how many groups stand in a row of a wide and of a narrow page; images fill it.
    """

    groups: Sequence[Cell]
    across: int = 2
    wide: int = 5
    narrow: int = 2
    caption: str = ""

    def html(self, assets: Assets) -> Markup:
        return _macro("gallery", self, [(cell, [assets.picture(path) for path in cell.images]) for cell in self.groups])


@dataclass(frozen=True)
class Stat:
    """One number worth a tile: `value` as it is to be read; `met` says whether its goal, named in `hint`, was met."""

    name: str
    value: str
    unit: str = ""
    hint: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Stats(Item):
    """A row of tiles."""

    tiles: Sequence[Stat]

    def html(self, assets: Assets) -> Markup:
        return _macro("stats", self.tiles)


@dataclass(frozen=True)
class Code(Item):
    """Text in fixed pitch, as it is: a command, a config."""

    text: str
    caption: str = ""

    def html(self, assets: Assets) -> Markup:
        return _macro("code", spoken(self.text.strip("\n")), self.caption)


@dataclass(frozen=True)
class Fold(Item):
    """Items that are seen once their title is clicked on."""

    title: str
    items: Sequence[Item]

    def html(self, assets: Assets) -> Markup:
        return _macro("fold", self.title, [item.html(assets) for item in self.items])


@dataclass(frozen=True)
class Section:
    """A heading, a line on what is seen below, and the items."""

    title: str
    intro: str = ""
    items: Sequence[Item] = ()


def write_report(folder: Path | str, title: str, subtitle: str, sections: Sequence[Section]) -> Path:
    """Write folder/index.html and return its path. The page replaces an older one whole, and last, or not at all."""
    folder = Path(folder)
    assets = Assets(folder)
    bodies = [[item.html(assets) for item in section.items] for section in sections]
    parts = list(zip(sections, bodies, strict=True))
    page = template("page.html.j2").render(title=title, subtitle=subtitle, parts=parts, style=style())
    for name, source in assets.copies.items():
        write_bytes(folder / name, source.read_bytes())
    # A prompt may hold bytes that are no UTF-8 (surrogates to Python): they become "?".
    return write_bytes(folder / "index.html", page.encode("utf-8", "replace"))


def _macro(name: str, *arguments: object) -> Markup:
    return getattr(template("items.html.j2").module, name)(*arguments)
