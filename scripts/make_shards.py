"""Turn images into WebDataset shards with a manifest.

    python scripts/make_shards.py source=PHOTOS out=SHARDS size=256
    python scripts/make_shards.py source=photos.csv images=PHOTOS image_column=file caption_column=text out=SHARDS
    python scripts/make_shards.py source=train2017 annotations=instances.json,captions.json out=SHARDS
    python scripts/make_shards.py source=train annotations=BOXES.csv descriptions=CLASSES.csv classes=300 out=SHARDS
    python scripts/make_shards.py source=images/training maps=annotations/training num_classes=151 out=SHARDS size=384

A folder: an image's caption is the text file beside it (cat.jpg, cat.txt). Images in sub-folders also get a class: the
first folder's name and its place in the alphabet; without a text file that name is the caption. A folder without text
files and sub-folders is images alone. Links are followed, each folder once; hidden and system folders are not read.
A table (csv, tsv, jsonl, parquet): one row for each image, its path relative to images= (otherwise the table), and in
that folder. Other columns keep their names in the .json member. Several rows of one image give it several captions.
COCO's annotations: objects with their boxes (of the upright image), captions, or both. OpenImages' boxes: csv files and
descriptions= of its classes; classes=300 takes the commonest and those of COCO, numbered in the order of descriptions=.

Maps of classes: with maps=ANNOTATIONS num_classes=151 the map of x.jpg is x.png of that folder, grey or a palette. Its
pixels are class numbers; it is held against its image's shape and the number of classes, and scaled with it.

With members=depth.png,pose.json the files x.depth.png and x.pose.json beside x.jpg go with it as they are, for fields
of your own; an image that lacks one is left out.

With size= images are scaled down (shortest side, never up) and stored upright as WebP of quality= (95), otherwise their
files are copied as they are. What cannot be used is left out, counted and named in the manifest. Started again, it goes
on; the number of workers changes no byte. A finished folder is confirmed, never changed.
"""

import difflib
import inspect
import re
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from rich.console import Console

if not __package__:  # a file of a checkout that may not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.data.errors import printable, told
from ldm.data.making.settings import Settings, place
from ldm.errors import UserError
from ldm.installed import spoken
from ldm.redaction import hide_on_terminal


def main(arguments: list[str]) -> None:
    """Make shards as the words say; ends with one line and status 1 where they make no sense."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(spoken(help_text()))
        return
    console = Console()
    try:
        settings = parse(arguments)
        from ldm.data.making.make import make_shards  # torch, once the words are known to be good
        from ldm.data.making.report import report

        report(make_shards(settings, console), settings, console)
    except ValueError as error:
        raise SystemExit(f"make_shards: {spoken(told(error))}") from None
    except OSError as error:
        place = f": {error.filename}" if error.filename is not None else ""
        raise SystemExit(f"make_shards: {printable(f'{error.strerror or error}{place}')}") from None
    except KeyboardInterrupt:
        raise SystemExit("make_shards: stopped; the same command goes on") from None


def help_text() -> str:
    """What this is, with its examples, and the keys with the comments that Settings has on them."""
    field = r"(?m)^    (\w+): \w+(?: = (?:field.*|(\S+)))?  # (.+)$"
    keys = [(key, default.strip('"'), said) for key, default, said in re.findall(field, inspect.getsource(Settings))]
    return "\n".join([__doc__, "keys", *(f"  {f'{key}={default}':<24}# {said}" for key, default, said in keys)])


def parse(arguments: list[str]) -> Settings:
    """key=value words to settings; ValueError names what is wrong and the nearest key."""
    kinds = {field.name: field.type for field in fields(Settings)}
    values: dict[str, Any] = {}
    for word in arguments:
        key, equals, text = word.partition("=")
        if key not in kinds or not equals:
            near = difflib.get_close_matches(key, kinds, n=1)
            hint = f"; did you mean {near[0]}=?" if near else ""
            raise UserError(f"{word!r} is none of {', '.join(f'{name}=' for name in kinds)}{hint}")
        if key in values:
            raise UserError(f"{key}= is given twice: {values[key]} and {text}")
        if kinds[key] is Path and not text:
            raise UserError(f"{key}= is empty; name a place")
        values[key] = place(key, text) if kinds[key] is Path else _value(key, text, kinds[key])
    for field in fields(Settings):
        if field.default is field.default_factory is MISSING and field.name not in values:
            raise UserError(f"{field.name}= is missing; see --help")
    return Settings(**values)


def _value(key: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{key}={text!r} is not a number") from None


if __name__ == "__main__":
    hide_on_terminal()
    main(sys.argv[1:])
