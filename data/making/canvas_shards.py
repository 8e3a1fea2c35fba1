"""Shards of canvases: written into a folder by scripts/make_canvases.py, or kept in the cache's folder for data that is
named canvases://train/size=64 and made when it is first read.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from uuid import uuid4

from ldm.data.derived import cache_folder
from ldm.data.making.canvases import CanvasSettings, canvas, members
from ldm.data.making.cutouts import BUILT_IN, SPLITS, class_names
from ldm.data.making.manifest import rows_there
from ldm.data.progress import watched
from ldm.data.user_error import UserError
from ldm.data.writing import MANIFEST, sha256_of, write_manifest, write_shard

SHARD_SAMPLES = 1024
DEFAULTS = {"train": 4096, "validation": 512}  # samples
MOST_SAMPLES = 1_000_000  # of a name
MOST_SHARDS = 100_000  # of a folder, whose numbers have five digits
VERSION = 1  # of what is drawn for a number: another one is another name in the cache


@dataclass(frozen=True)
class Named:
    """What is asked for of one split."""

    settings: CanvasSettings
    samples: int


def named_shards(name: str, key: str) -> list[Path]:
    """The shards that canvases://NAME names (see `parse`), made now unless the cache's folder has them.

    Raises UserError, naming the configuration key `key`, for a name that makes no sense or a folder not to be written.
    """
    try:
        asked = parse(name)
    except UserError as error:
        raise UserError(f"{key}: canvases://{name}: {error}") from None
    facts = [VERSION, _facts(asked.settings), asked.samples, sha256_of(BUILT_IN / MANIFEST)]
    folder = cache_folder() / "canvases" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    if not (folder / MANIFEST).exists():
        partial = folder.with_name(f"{folder.name}.{uuid4().hex}.partial")
        try:
            partial.mkdir(parents=True)
            make_canvas_shards(partial, {asked.settings.split: asked})
            os.replace(partial, folder)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            if not (folder / MANIFEST).exists():  # else another process was first
                reason = f"{folder}: cannot be written ({error.strerror}); set LDM_CACHE to a folder that can"
                raise UserError(f"{key}: canvases://{name}: {reason}") from error
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return [folder / shard for shard in _shards(asked)]


def parse(name: str) -> Named:
    """train/size=64x128/samples=100/objects=2-4/sides=0.3-0.5/textured=0/seed=1/names=4; only the split is needed.

    Raises UserError.
    """
    split, *words = name.strip("/").split("/")
    values: dict[str, Any] = {"split": split}
    known = [field.name for field in fields(CanvasSettings)[1:]] + ["samples"]
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key not in known or key in values:
            raise UserError(f"{word!r} is none of {', '.join(f'{own}=' for own in known)}, each once")
        values[key] = _value(key, text)
    samples = values.pop("samples", DEFAULTS.get(split, 1))
    if not 1 <= samples <= MOST_SAMPLES:
        raise UserError(f"samples={samples} must be 1 to {MOST_SAMPLES:,}")
    return Named(CanvasSettings(**values), samples)


def asked_for(tree: Mapping[str, Any]) -> dict[str, Named]:
    """The splits that a tree of conf/make_canvases.yaml asks for. Raises UserError for values that make no canvas."""
    size = tree["size"]
    words = {
        "size": tuple(size) if isinstance(size, list) else (size, size),
        **{key: tuple(tree[key]) for key in ("objects", "sides")},
        **{key: tree[key] for key in ("textured", "seed", "names")},
    }
    for key in ("size", "objects", "sides"):
        if len(words[key]) != 2:
            raise UserError(f"{key}={tree[key]}: two numbers are meant")
    counts = {"train": tree["samples"], "validation": tree["validation_samples"]}
    most = MOST_SHARDS * SHARD_SAMPLES
    if max(counts.values()) > most:
        key = "samples" if counts["train"] > most else "validation_samples"
        raise UserError(f"{key}={max(counts.values())}: at most {most:,}")
    found = {split: Named(CanvasSettings(split, **words), count) for split, count in counts.items() if count}
    if not found or min(counts.values()) < 0:
        said = f"samples={counts['train']}, validation_samples={counts['validation']}"
        raise UserError(f"{said}: neither may be negative, nor both 0")
    return found


def _facts(settings: CanvasSettings) -> dict[str, Any]:
    """What a set is known by: as it was before there were `names`, where all are drawn."""
    return {key: value for key, value in asdict(settings).items() if key != "names" or value is not None}


def _value(key: str, text: str) -> Any:
    """Of a word: whole numbers and shares, a pair of them, or a size that may be the same twice."""
    kind = float if key in ("sides", "textured") else int
    mark = {"size": "x", "objects": "-", "sides": "-"}.get(key)
    try:
        numbers = tuple(kind(part) for part in (text.split(mark) if mark else [text]))
    except ValueError:
        raise UserError(f"{key}={text} is not a number, or not two with {mark!r} between them") from None
    if mark is None:
        return numbers[0]
    if len(numbers) > 2:
        raise UserError(f"{key}={text}: one number, or two with {mark!r} between them")
    return numbers * 2 if len(numbers) == 1 else numbers


def make_canvas_shards(out: Path, asked: Mapping[str, Named]) -> dict[str, Any]:
    """Write the shards of each split; returns the manifest. A finished folder is confirmed, never changed.

    Raises UserError where `out` holds other shards.
    """
    counts = {shard: count for own in asked.values() for shard, count in _shards(own).items()}
    there = rows_there(out, counts)
    out.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split, own in asked.items():
        made = watched(_samples(own), own.samples, f"composing canvases of {split}")
        rows = [
            write_shard(out / shard, (next(made) for _ in range(count)), there.get(shard))
            for shard, count in _shards(own).items()
        ]
        splits[split] = {"samples": own.samples, "shards": rows}
    manifest = {
        "name": "canvases",
        "samples": sum(own.samples for own in asked.values()),
        "class_names": class_names(),
        "map": "0 is the ground, k + 1 the class of number k",
        "splits": {split: splits.get(split, {"samples": 0, "shards": []}) for split in SPLITS},
        "made_with": {split: {**_facts(own.settings), "version": VERSION} for split, own in asked.items()},
    }
    write_manifest(out, manifest)
    return manifest


def _samples(asked: Named) -> Iterator[dict[str, Any]]:
    for number in range(asked.samples):
        yield {"__key__": f"{number:06d}", **members(canvas(asked.settings, number))}


def _shards(asked: Named) -> dict[str, int]:
    """Shard name -> samples."""
    starts = range(0, asked.samples, SHARD_SAMPLES)
    split = asked.settings.split
    return {f"{split}-{place:05d}.tar": min(SHARD_SAMPLES, asked.samples - start) for place, start in enumerate(starts)}
