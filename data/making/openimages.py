"""Images with the boxes of OpenImages: its csv files of boxes, and the csv file of its classes' names.

An object becomes what `data.fields.Layout` reads: a category, a box, and group, occluded, depiction or inside where the
file says so (-1, not known, is no). Classes are numbered in the order of the names' file. A row that cannot be read
leaves its image out whole. Hierarchies of classes, image labels, masks and points are not read.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.data.image_names import IMAGE_EXTENSIONS
from ldm.data.making.files import reason_of
from ldm.data.making.objects import ObjectRules
from ldm.data.making.openimages_classes import COCO, FOLDED
from ldm.data.making.sources import Problem, Source, Sources
from ldm.data.making.upright_boxes import UNTOLD
from ldm.data.user_error import UserError

BROKEN = "broken annotation"
COLUMNS = ("ImageID", "LabelName", "XMin", "YMin", "XMax", "YMax")
FLAGS = {"IsGroupOf": "group", "IsOccluded": "occluded", "IsDepiction": "depiction", "IsInside": "inside"}
Row = tuple[int, list[str]]  # its line, and the values of COLUMNS and FLAGS


def read_openimages(
    folder: Path, files: Sequence[Path], descriptions: Path, classes: str, rules: ObjectRules
) -> Sources:
    """The images of `folder` that the files have boxes of, with those of the `classes` that `rules` keep.

    `classes`: '' for all; a number N for the N commonest in the files and those of COCO, with what COCO does not tell
    apart folded (a woman is a person); or a manifest whose class_names are taken. Raises UserError naming the key.
    """
    if not folder.is_dir():
        raise UserError(f"source={folder} is no folder of images")
    names = _descriptions(descriptions)
    class_names = _choose(classes, names, files)
    numbers = {name: number for number, name in enumerate(class_names)}
    folded = {name: numbers.get(name, numbers.get(FOLDED.get(name, ""))) for name in names.values()}
    there, shadowed = _images(folder)
    found: dict[str, list[str]] = {}
    broken: dict[str, str] = {}
    absent: set[str] = set()
    flat = 0
    for file in files:
        for line, (image, label, *values) in _rows(file):
            if image not in there:
                absent.add(image)
                continue
            objects = found.setdefault(image, [])
            try:
                number = folded[names[label]]
                box, flags = _object(values)
            except (KeyError, ValueError) as error:
                broken.setdefault(image, f"{file.name} line {line}: {error}")
                continue
            if not (box[0] < box[2] and box[1] < box[3]):
                flat += 1
            elif number is not None and rules.large_enough(box):
                objects.append(json.dumps({"category": number, "box": box, **flags}))
    if not found:
        raise UserError(f"source={folder} holds none of the {len(absent)} images that annotations= has boxes of")
    sources = [
        Source(folder / there[image], there[image], f'{{"objects": [{", ".join(objects)}]}}', problem, UNTOLD)
        for image, objects in found.items()
        for problem in [Problem(BROKEN, broken[image]) if image in broken else None]
        if problem is not None or rules.takes(there[image], objects)
    ]
    num_unnamed = len(set(COCO.values()) - set(class_names)) if classes.isdecimal() else 0
    notes = _notes(len(absent), len(there) - len(found), flat, num_unnamed)
    if shadowed:
        first = shadowed[0]
        notes.append(
            f"{len(shadowed)} images have the name of another but for its ending, and boxes name no ending; left out; "
            f"the first: {first!r}, beside {there[first.rpartition('.')[0]]!r}"
        )
    return Sources(sources, class_names, [], [*notes, *rules.notes()])


def _object(values: list[str]) -> tuple[list[float], dict[str, bool]]:
    """Box and flags of a row without its first two columns; UserError for what is none."""
    box = [float(value) for value in values[:4]]
    if not all(-0.01 <= share <= 1.01 for share in box) or box[0] > box[2] or box[1] > box[3]:
        raise UserError(f"a box of {', '.join(values[:4])} is none in shares of the image")
    flags = dict(zip(FLAGS.values(), values[4:], strict=True))
    if not set(flags.values()) <= {"1", "0", "-1", ""}:
        raise UserError(f"flags are 1, 0 or -1, not {', '.join(values[4:])}")
    return [round(min(max(share, 0.0), 1.0), 6) for share in box], {n: True for n, said in flags.items() if said == "1"}


# -- files ---------------------------------------------------------------------------------------------------------


def _rows(file: Path) -> Iterator[Row]:
    """(line, values of COLUMNS and then of FLAGS, '' for those that the file lacks). UserError names the file."""
    reader = _reader("annotations", file)
    header = next(reader, (0, []))[1]
    lacking = [column for column in COLUMNS if column not in header]
    if lacking:
        raise UserError(f"annotations={file}: not OpenImages' boxes (no column {lacking[0]})")
    places = [header.index(column) if column in header else None for column in (*COLUMNS, *FLAGS)]
    for line, row in reader:
        if len(row) != len(header):
            raise UserError(f"annotations={file}: line {line} has {len(row)} columns, and the first {len(header)}")
        yield line, ["" if place is None else row[place] for place in places]


def _reader(key: str, file: Path) -> Iterator[Row]:
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened)
            for row in reader:
                if row:
                    yield reader.line_num, row
    except OSError as error:
        raise UserError(f"{key}={file}: {reason_of(error)}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{key}={file}: not to be read as csv: {error}") from None


def _descriptions(file: Path) -> dict[str, str]:
    """Label -> name of the class, in the order of the file."""
    rows = [row for _, row in _reader("descriptions", file) if row[0] != "LabelName"]
    wrong = [row for row in rows if len(row) != 2 or not row[0].startswith("/")]
    if wrong or not rows:
        raise UserError(f"descriptions={file}: lines are a label and a name, as /m/01yrx,Cat{', not ' if wrong else ''}"
                        f"{','.join(wrong[0])[:60] if wrong else ''}")  # fmt: skip
    return dict((label, name) for label, name in rows)


def _images(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Name without its ending -> name, of the images in a folder; and those whose place another has."""
    found: dict[str, str] = {}
    shadowed: list[str] = []
    for name in sorted(entry.name for entry in os.scandir(folder)):
        stem, _, ending = name.rpartition(".")
        if ending.lower() in IMAGE_EXTENSIONS:
            shadowed += [found[stem]] if stem in found else []
            found[stem] = name
    return found, shadowed


def _choose(classes: str, names: Mapping[str, str], files: Sequence[Path]) -> list[str]:
    """The names of the classes, in the order of their numbers."""
    every = list(dict.fromkeys(names.values()))
    if not classes:
        return every
    if not classes.isdecimal():
        return _listed(Path(classes).expanduser(), every)
    counts: Counter[str] = Counter(names.get(row[1], "") for file in files for _, row in _rows(file))
    for part, whole in FOLDED.items():
        counts[whole] += counts.pop(part, 0)
    known = [name for name in every if name not in FOLDED]
    commonest = sorted(known, key=lambda name: -counts[name])[: int(classes)]  # of the same count, in the file's order
    chosen = {name for name in commonest if counts[name]}.union(COCO.values())
    return [name for name in known if name in chosen]


def _listed(manifest: Path, every: Sequence[str]) -> list[str]:
    """The classes of finished shards."""
    try:
        listed: Any = json.loads(manifest.read_bytes())["class_names"]
        unknown = [name for name in listed if name not in every]
    except OSError as error:
        raise UserError(f"classes={manifest}: {reason_of(error)}; a number, or a manifest.json") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"classes={manifest}: no manifest with class_names") from None
    if unknown or not listed:
        raise UserError(f"classes={manifest}: {unknown[0] if unknown else 'none'} is no class of descriptions=")
    return list(listed)


def _notes(num_absent: int, num_unboxed: int, num_flat: int, num_unnamed: int) -> list[str]:
    facts = {
        f"{num_absent} images with boxes are not in the folder": num_absent,
        f"{num_unboxed} images of the folder have no boxes; left out": num_unboxed,
        f"{num_flat} boxes have no area; left out": num_flat,
        f"{num_unnamed} of COCO's classes are not named in descriptions=": num_unnamed,
    }
    return [note for note, count in facts.items() if count]
