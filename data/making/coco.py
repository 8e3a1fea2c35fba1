"""Images described by annotation files of COCO's form: objects with boxes, captions, or both.

An object becomes {"category": place among the categories in the order of their ids, "box": [left, top, right, bottom]
in shares of the upright image}, a crowd also "group": true, as `data.fields.Layout` reads them. An image with a record
that cannot be read is left out whole: without one of its boxes it would be described wrongly. Segmentations are not
read.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.data.errors import BadSample
from ldm.data.making.files import reason_of
from ldm.data.making.inside import Folder
from ldm.data.making.objects import ObjectRules
from ldm.data.making.sources import LeftOut, Problem, Source, Sources
from ldm.data.members import is_unicode, says_something
from ldm.data.user_error import UserError

BROKEN = "broken annotation"


@dataclass
class _Image:
    """One image while the files are read; `broken` is the first of its records that cannot be read, and `sizes` says
    where files give it different sizes.
    """

    record: dict[str, Any]
    captions: list[tuple[Any, str]] = field(default_factory=list)
    boxed: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)  # (where, annotation)
    broken: str | None = None
    sizes: str | None = None


@dataclass
class _Files:
    """The content of the annotation files."""

    images: dict[Any, _Image] = field(default_factory=dict)
    categories: dict[Any, str] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)  # annotations of images that no file lists
    flat: list[str] = field(default_factory=list)  # annotations whose boxes have no area inside their image


def read_annotations(folder: Path, files: list[Path], rules: ObjectRules) -> Sources:
    """The images that the files list, in `folder`; raises ValueError if a file is not of that form."""
    found = _Files()
    contents = [(file, _load(file)) for file in files]
    for file, content in contents:
        _read_images(found, file, content["images"])
        _read_categories(found, file, content.get("categories"))
    for file, content in contents:
        _read_notes(found, file, content["annotations"])
    if not found.images:
        raise UserError(f"annotations={files[0]} lists no images")
    numbers = {category: number for number, category in enumerate(sorted(found.categories))}
    sources = _sources(found, Folder(folder), numbers, rules)
    class_names = [found.categories[category] for category in numbers]
    return Sources(sources, class_names, found.left_out, [*_notes(found), *rules.notes()])


# -- files ---------------------------------------------------------------------------------------------------------


def _load(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"annotations={file}: {reason_of(error)}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"annotations={file}: {error}") from None
    for key in ("images", "annotations"):
        if not isinstance(content, Mapping) or not isinstance(content.get(key), list):
            raise UserError(f"annotations={file}: not of COCO's form (no list of {key})")
    return content


def _records(found: _Files, file: Path, kind: str, entries: list[Any]) -> Iterator[tuple[str, Any]]:
    """(position in the file, record) of each entry that is a JSON object."""
    for place, entry in enumerate(entries):
        if isinstance(entry, Mapping):
            yield f"{file.name}: {kind} {entry.get('id', f'at place {place}')!r}", entry
        else:
            found.left_out.append(LeftOut(f"{file.name}: {kind} at place {place}", BROKEN, "not an object"))


def _read_images(found: _Files, file: Path, entries: list[Any]) -> None:
    for where, record in _records(found, file, "image", entries):
        identity, name = record.get("id"), record.get("file_name")
        if not isinstance(identity, int | str) or not isinstance(name, str) or not name or not is_unicode(name):
            found.left_out.append(LeftOut(where, BROKEN, "an image needs an id and a file_name"))
            continue
        known = found.images.setdefault(identity, _Image(dict(record)))
        if known.record["file_name"] != name:
            known.broken = f"{where} is also {known.record['file_name']!r}"
        for side in ("width", "height"):
            if known.record.get(side) is None:
                known.record[side] = record.get(side)
            elif record.get(side) not in (None, known.record[side]):
                known.sizes = f"{where}: its {side} is {record[side]!r}, and {known.record[side]!r} in another record"


def _read_categories(found: _Files, file: Path, entries: Any) -> None:
    if entries is not None and not isinstance(entries, list):
        raise UserError(f"annotations={file}: not of COCO's form (categories is no list)")
    for place, entry in enumerate(entries or []):
        try:
            identity, name = entry["id"], entry["name"]
            if type(identity) is not int or not isinstance(name, str):
                raise TypeError(f"id {identity!r} is no number, or name {name!r} no text")
        except (KeyError, TypeError) as error:
            raise UserError(f"annotations={file}: category at place {place}: {error!r}") from None
        if found.categories.setdefault(identity, name) != name:
            raise UserError(f"annotations={file}: category {identity} is {name!r} here, and another elsewhere")


def _read_notes(found: _Files, file: Path, entries: list[Any]) -> None:
    for where, entry in _records(found, file, "annotation", entries):
        identity = entry.get("image_id")
        image = found.images.get(identity) if isinstance(identity, int | str) else None
        if image is None:
            found.strays.append(where)
            continue
        if "caption" not in entry or "category_id" in entry:
            image.boxed.append((where, entry))
        if "caption" in entry:
            if not isinstance(entry["caption"], str) or not is_unicode(entry["caption"]):
                image.broken = image.broken or f"{where}: its caption is no text"
            else:
                image.captions.append((entry.get("id"), entry["caption"].strip()))


# -- images --------------------------------------------------------------------------------------------------------


def _sources(found: _Files, folder: Folder, numbers: Mapping[Any, int], rules: ObjectRules) -> list[Source]:
    any_boxes = bool(numbers) or any(image.boxed for image in found.images.values())
    any_captions = any(image.captions for image in found.images.values())
    sources: dict[str, Source] = {}
    for identity, image in found.images.items():
        name = image.record["file_name"]
        facts: dict[str, Any] = {}
        path, problem, raster = folder.path / name, None, None
        if (known := sources.get(str(path))) is not None:  # a name may be spelled ./a.jpg and a.jpg
            other = f"image {identity!r} has the file_name of another; give each file one record"
            sources[str(path)] = Source(path, known.name, "{}", Problem(BROKEN, other))
            continue
        try:
            path = folder.find(name)
            if image.broken is not None:
                raise BadSample(BROKEN, image.broken)
            if any_boxes:
                facts["objects"] = _objects(found, image, numbers, rules)
                if not rules.takes(name, facts["objects"]):
                    continue
                raster = (image.record["width"], image.record["height"]) if facts["objects"] else None
            if any_captions:
                facts["caption"] = [text for _, text in sorted(image.captions, key=_order) if says_something(text)]
                if not facts["caption"]:
                    raise BadSample("missing caption", "no annotation has one")
        except BadSample as error:
            problem = Problem.of(error)
        sources[str(folder.path / name)] = Source(path, name, json.dumps(facts, ensure_ascii=False), problem, raster)
    return list(sources.values())


def _order(caption: tuple[Any, str]) -> tuple[bool, Any, str]:
    """By the number of the annotation, and those without one last."""
    identity, text = caption
    return (False, identity, text) if isinstance(identity, int) else (True, 0, text)


def _objects(found: _Files, image: _Image, numbers: Mapping[Any, int], rules: ObjectRules) -> list[dict[str, Any]]:
    """The objects of one image, in the order of the file; those without an area inside it are left out, and noted."""
    if image.boxed and image.sizes:
        raise BadSample(BROKEN, image.sizes)
    objects = []
    for where, entry in image.boxed:
        category = entry.get("category_id")
        if not isinstance(category, int) or category not in numbers:
            raise BadSample(BROKEN, f"{where}: category_id {category!r} is not among the categories")
        box = _box(where, entry.get("bbox"), image.record)
        if (crowd := entry.get("iscrowd")) not in (None, 0, 1):  # "0" would count as true
            raise BadSample(BROKEN, f"{where}: iscrowd {crowd!r} is neither 0 nor 1")
        if not (box[0] < box[2] and box[1] < box[3]):
            found.flat.append(where)
        elif rules.large_enough(box):
            objects.append({"category": numbers[category], "box": box, **({"group": True} if crowd else {})})
    return objects


def _box(where: str, bbox: Any, record: Mapping[str, Any]) -> list[float]:
    """left, top, right, bottom in shares of the image, from left, top, width and height in pixels."""
    width, height = record.get("width"), record.get("height")
    if not all(_is_number(side) and side > 0 for side in (width, height)):
        raise BadSample(BROKEN, f"{where}: bbox in an image of width {width!r} and height {height!r}")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise BadSample(BROKEN, f"{where}: bbox {str(bbox)[:60]} is not left, top, width, height")
    left, top, across, down = bbox
    shares = [left / width, top / height, (left + across) / width, (top + down) / height]
    return [round(min(max(share, 0.0), 1.0), 6) for share in shares]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _notes(found: _Files) -> list[str]:
    notes = []
    if found.strays:
        notes.append(f"{len(found.strays)} annotations are of images that no file lists; the first: {found.strays[0]}")
    if found.flat:
        notes.append(f"{len(found.flat)} boxes have no area inside their image; left out; the first: {found.flat[0]}")
    return notes
