"""The classes of some shards as those of others, by the names in the manifests beside them.

    python scripts/map_classes.py from=/path/to/coco-shards to=/path/to/openimages-shards
    python scripts/map_classes.py from=shards/own to=shards/openimages

prints data.fields.layout.classes=[...], with which a model of the boxes of `to` is fine-tuned on those of `from`; for a
class that `to` lacks it has null, which leaves its objects out, and that is said.

    from=  a folder of shards with a manifest.json, whose classes are to be mapped
    to=    another, whose classes the model has
"""

import sys
from pathlib import Path

from ldm.config import check_once, guarded
from ldm.data.making.settings import place
from ldm.errors import UserError
from ldm.installed import spoken

KEYS = ("from", "to")


def main(arguments: list[str]) -> int:
    """Print the word for train.py."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(spoken(__doc__))
        return 0
    words = parse(arguments)
    from ldm.data.making.class_matching import matched

    own, others = (_names(key, place(key, words[key])) for key in KEYS)
    places = matched(own, others)
    lacking = [name for name, place in zip(own, places, strict=True) if place is None]
    if len(lacking) == len(own):
        raise UserError(f"to={words['to']}: has none of the classes of from= ({', '.join(own[:5])}, ...)")
    if lacking:
        print(f"left out, as to= has none of that name: {', '.join(lacking)}", file=sys.stderr)
    numbers = ",".join("null" if place is None else str(place) for place in places)
    print(f"data.fields.layout.classes=[{numbers}]")
    return 0


def parse(arguments: list[str]) -> dict[str, str]:
    """from= and to= of the words; UserError for others, for what is missing and for what is there twice."""
    check_once(arguments)
    words = dict(word.partition("=")[::2] for word in arguments)
    for key in words:
        if key not in KEYS:
            raise UserError(f"{key}: is none of {', '.join(f'{name}=' for name in KEYS)}")
    for key in KEYS:
        if not words.get(key):
            raise UserError(f"{key}=: is missing, a folder of shards; see --help")
    return words


def _names(key: str, folder: Path) -> list[str]:
    """The class names of the shards in a folder."""
    from ldm.data.classes import class_names

    if not folder.is_dir():
        raise UserError(f"{key}={folder}: no such folder")
    names = class_names(f"{folder}/*.tar")
    if not names:
        raise UserError(f"{key}={folder}: no manifest.json there that names classes (class_names), beside shards")
    return names


if __name__ == "__main__":
    guarded(main)
