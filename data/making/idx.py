"""Shards of the IDX files of MNIST and its kin: small grey images, padded to a square of `size` px, with their classes.

What the files call train is trained on, what they call t10k is held out.
"""

import gzip
import io
import json
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm.data.making.manifest import SPLITS, rows_there
from ldm.data.user_error import UserError
from ldm.data.writing import write_manifest, write_shard

FILES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
         "validation": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}  # fmt: skip
FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
MAX_BYTES = 1 << 31  # of the array in a file; gzip can promise more than there is memory


def make_idx_shards(
    source: Path, out: Path, size: int, shard_samples: int = 10000, classes: Sequence[str] = FASHION
) -> dict[str, Any]:
    """Write shards of ``KEY.png`` and ``KEY.json`` (class and its number, a caption); returns the manifest.

    `source` holds the four files, as they are or in gzip; `classes` are the names of its labels from 0 on. Raises
    UserError for one that is missing or not IDX, for images larger than `size`, and for an `out` that holds other
    shards; its own are confirmed, or finished where it was killed.
    """
    parts = {name: tuple(_read(source, file) for file in files) for name, files in FILES.items()}
    for name, (images, labels) in parts.items():
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise UserError(f"source={source}: {name} has images of shape {images.shape}, labels of {labels.shape}")
        if not images.size:
            raise UserError(f"source={source}: {name} has no images, its shape is {images.shape}")
        if max(images.shape[1:]) > size:
            raise UserError(f"size={size}: images of {images.shape[2]} x {images.shape[1]} px cannot be padded to it")
        if labels.max() >= len(classes):
            raise UserError(f"source={source}: a label of {name} is {labels.max()}; there are {len(classes)} classes")
    starts = {
        f"{name}-{place:05d}.tar": (name, start)
        for name in SPLITS
        for place, start in enumerate(range(0, len(parts[name][0]), shard_samples))
    }
    counts = {shard: min(shard_samples, len(parts[name][0]) - start) for shard, (name, start) in starts.items()}
    there = rows_there(out, counts)
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
    for shard, (name, start) in starts.items():
        images, labels = parts[name]
        samples = _samples(images, labels, size, start, counts[shard], classes)
        rows[name].append(write_shard(out / shard, samples, there.get(shard)))
    splits = {name: {"samples": len(parts[name][0]), "shards": rows[name]} for name in SPLITS}
    count = sum(len(labels) for _, labels in parts.values())
    manifest = {"name": source.name, "samples": count, "class_names": list(classes), "splits": splits}
    write_manifest(out, manifest)
    return manifest


def _read(source: Path, name: str) -> np.ndarray:
    """The array of an IDX file of bytes (magic number 0, 0, 8, dimensions; then their sizes; then the bytes)."""
    places = [path for path in (source / name, source / f"{name}.gz") if path.is_file()]
    if not places:
        raise UserError(f"source={source}: no {name} there, nor {name}.gz")
    opened = gzip.open if places[0].suffix == ".gz" else open
    try:
        with opened(places[0], "rb") as file:
            begin, num_dimensions = struct.unpack(">3sB", file.read(4))
            if begin != b"\0\0\x08":
                raise struct.error("it does not begin as an IDX file of bytes")
            shape = struct.unpack(f">{num_dimensions}I", file.read(4 * num_dimensions))
            count = math.prod(shape)
            if count > MAX_BYTES:
                raise struct.error(f"its shape {shape} is more than {MAX_BYTES} bytes")
            content = file.read(count + 1)
            if len(content) != count:
                raise struct.error(
                    f"its shape is {shape}, and it has {'more' if len(content) > count else 'fewer'} bytes"
                )
        return np.frombuffer(content, np.uint8).reshape(shape)
    except (struct.error, ValueError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{places[0]}: not to be read as IDX: {error}") from error


def _samples(
    images: np.ndarray, labels: np.ndarray, size: int, start: int, count: int, classes: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Of `count` images from `start` on."""
    height, width = images.shape[1:]
    top, left = (size - height) // 2, (size - width) // 2
    for number in range(start, start + count):
        padded = np.zeros((size, size), np.uint8)
        padded[top : top + height, left : left + width] = images[number]
        buffer = io.BytesIO()
        Image.fromarray(padded).save(buffer, "png")
        label = int(labels[number])
        facts = json.dumps({"label": label, "class": classes[label], "caption": classes[label]}, ensure_ascii=False)
        yield {"__key__": f"{number:05d}", "png": buffer.getvalue(), "json": facts.encode()}
