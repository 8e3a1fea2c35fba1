"""Turn the IDX files of Fashion-MNIST or its kin into WebDataset shards: padded to a square, labelled, t10k held out.

    python scripts/make_idx_shards.py source=/usr/share/datasets/fashion-mnist out=shards/fashion
    python scripts/make_idx_shards.py source=ROOT/FashionMNIST/raw out=shards/fashion size=32

source= is the folder of train-images-idx3-ubyte, train-labels-idx1-ubyte and the two of t10k, as they are or with .gz:
of the Debian package dataset-fashion-mnist, or of torchvision. The same files give the same bytes.

keys
  source=                   # the folder of the four files
  out=                      # a folder for the shards, which is made
  size=32                   # px of the square that images are padded to
  classes=                  # names of the labels from 0 on, as zero,one,two; without it those of Fashion-MNIST
"""

import sys
from pathlib import Path

if not __package__:  # a file of a checkout that may not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.config import check_once, guarded
from ldm.data.making.settings import place
from ldm.errors import UserError
from ldm.installed import spoken

KEYS = ("source", "out", "size", "classes")
MOST_SIDE = 4096  # px


def main(arguments: list[str]) -> int:
    """Make the shards as the words say."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(spoken(__doc__))
        return 0
    source, out, size, classes = parse(arguments)
    from ldm.data.making.idx import FASHION, make_idx_shards

    manifest = make_idx_shards(source, out, size, classes=classes or FASHION)
    for name, part in manifest["splits"].items():
        print(f"{out}: {part['samples']} images of {name} in {len(part['shards'])} shards")
    return 0


def parse(arguments: list[str]) -> tuple[Path, Path, int, list[str]]:
    """source=, out=, size= and classes= of the words; UserError for others, what is missing and what is there twice."""
    check_once(arguments)
    words = dict(word.partition("=")[::2] for word in arguments)
    for key in words:
        if key not in KEYS:
            raise UserError(f"{key}: is none of {', '.join(f'{name}=' for name in KEYS)}")
    for key in KEYS[:2]:
        if not words.get(key):
            raise UserError(f"{key}=: is missing; see --help")
    size = words.get("size", "32")
    if not size.isdecimal():
        raise UserError(f"size={size!r} is not a number")
    if int(size) > MOST_SIDE:
        raise UserError(f"size={size}: at most {MOST_SIDE} px")
    given = words.get("classes", "").strip("[]")
    classes = [name.strip() for name in given.split(",")] if "classes" in words else []
    if not all(classes):
        raise UserError(f"classes={words['classes']}: a name is empty; give names with commas between them")
    return place("source", words["source"]), place("out", words["out"]), int(size), classes


if __name__ == "__main__":
    guarded(main)
