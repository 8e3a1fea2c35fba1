"""Images described by annotation files of COCO's form: objects with boxes, captions, or both.

An object becomes {"category": place among the categories in the order of their ids, "box": [left, top, right, bottom]
in shares of the image}, a crowd also "group": true, as `data.fields.Layout` reads them.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.making.sources import Source, Sources, image_problem


def read_annotations(folder: Path, files: list[Path]) -> Sources:
    """The images that the files list, in `folder`; raises ValueError if a file is not of that form."""
    images: dict[Any, Mapping[str, Any]] = {}
    categories: dict[int, str] = {}
    captions: dict[Any, list[tuple[int, str]]] = defaultdict(list)
    boxed: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for file in files:
        content = _load(file)
        try:
            images |= {image["id"]: image for image in content["images"]}
            categories |= {entry["id"]: entry["name"] for entry in content.get("categories", [])}
            for entry in content["annotations"]:
                if "caption" in entry:
                    captions[entry["image_id"]].append((entry["id"], entry["caption"].strip()))
                else:
                    boxed[entry["image_id"]].append(entry)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"annotations={file}: {_reason(error)}") from None
    numbers = {category: number for number, category in enumerate(sorted(categories))}
    sources = {}
    for identity, image in images.items():
        facts: dict[str, Any] = {}
        if categories:
            facts["objects"] = _objects(image, boxed[identity], numbers)
        if captions:
            facts["caption"] = [text for _, text in sorted(captions[identity]) if text]
        problem = "missing caption" if captions and not facts["caption"] else None
        name = _entry(image, "file_name")
        sources[name] = Source(folder / name, name, facts, image_problem(folder / name) or problem)
    if not sources:
        raise ValueError(f"annotations={files[0]} lists no images")
    return Sources(list(sources.values()), [categories[category] for category in sorted(categories)])


def _objects(
    image: Mapping[str, Any], entries: list[Mapping[str, Any]], numbers: Mapping[int, int]
) -> list[dict[str, Any]]:
    """The objects of one image, in the order of the file; those without an area inside it are left out."""
    width, height = _entry(image, "width"), _entry(image, "height")
    objects = []
    for entry in entries:
        category = _entry(entry, "category_id")
        if category not in numbers:
            raise ValueError(f"annotation {entry.get('id')}: category_id {category!r} is not among the categories")
        box = _box(_entry(entry, "bbox"), width, height)
        if box[0] < box[2] and box[1] < box[3]:
            group = {"group": True} if entry.get("iscrowd") else {}
            objects.append({"category": numbers[category], "box": box, **group})
    return objects


def _box(bbox: Any, width: Any, height: Any) -> list[float]:
    """left, top, right, bottom in shares of the image, from left, top, width and height in pixels."""
    try:
        left, top, across, down = bbox
        shares = [left / width, top / height, (left + across) / width, (top + down) / height]
        return [round(min(max(share, 0.0), 1.0), 6) for share in shares]
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"annotations=: bbox {bbox!r} in an image of {width!r}x{height!r}: {error}") from None


def _entry(values: Mapping[str, Any], key: str) -> Any:
    if key not in values:
        raise ValueError(f"annotations=: an entry has no {key!r}: {json.dumps(values)[:100]}")
    return values[key]


def _load(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise ValueError(f"annotations={file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"annotations={file}: {error}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}; COCO's files have images and annotations, and these ids"
    return f"not of COCO's form ({error})"
