"""Shards of the IDX files of MNIST and its kin: small grey images, padded to a square of `size` px, with their classes.

What the files call train is trained on, what they call t10k is held out.
"""

import gzip
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm.data.making.manifest import SPLITS
from ldm.data.user_error import UserError
from ldm.data.writing import MANIFEST, write_manifest, write_shard

FILES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
         "validation": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}  # fmt: skip
FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def make_idx_shards(source: Path, out: Path, size: int, shard_samples: int = 10000) -> dict[str, Any]:
    """Write shards of ``KEY.png`` and ``KEY.json`` (class and its number, a caption); returns the manifest.

    `source` holds the four files, as they are or in gzip. Raises UserError for one that is missing or not IDX, for
    images larger than `size`, and for an `out` that holds other shards; finished ones are confirmed.
    """
    strangers = [path.name for path in out.glob("*.tar")] if not (out / MANIFEST).exists() else []
    if strangers:
        raise UserError(f"out={out} already holds {strangers[0]}; delete it or choose another folder")
    parts = {name: tuple(_read(source, file) for file in files) for name, files in FILES.items()}
    for name, (images, labels) in parts.items():
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise UserError(f"source={source}: {name} has images of shape {images.shape}, labels of {labels.shape}")
        if max(images.shape[1:]) > size:
            raise UserError(f"size={size}: images of {images.shape[2]} x {images.shape[1]} px cannot be padded to it")
        if labels.max() >= len(FASHION):
            raise UserError(f"source={source}: a label of {name} is {labels.max()}; there are {len(FASHION)} classes")
    out.mkdir(parents=True, exist_ok=True)
    splits = {}
    for name in SPLITS:
        images, labels = parts[name]
        starts = range(0, len(images), shard_samples)
        rows = [
            write_shard(out / f"{name}-{place:05d}.tar", _samples(images, labels, size, start, shard_samples))
            for place, start in enumerate(starts)
        ]
        splits[name] = {"samples": len(images), "shards": rows}
    count = sum(len(labels) for _, labels in parts.values())
    manifest = {"name": source.name, "samples": count, "class_names": list(FASHION), "splits": splits}
    write_manifest(out, manifest)
    return manifest


def _read(source: Path, name: str) -> np.ndarray:
    """The array of an IDX file of bytes (magic number 0, 0, 8, dimensions; then their sizes; then the bytes)."""
    places = [path for path in (source / name, source / f"{name}.gz") if path.is_file()]
    if not places:
        raise UserError(f"source={source}: no {name} there, nor {name}.gz")
    try:
        content = (gzip.decompress if places[0].suffix == ".gz" else bytes)(places[0].read_bytes())
        begin, num_dimensions = struct.unpack_from(">3sB", content)
        shape = struct.unpack_from(f">{num_dimensions}I", content, 4)
        if begin != b"\0\0\x08":
            raise struct.error("it does not begin as an IDX file of bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * num_dimensions).reshape(shape)
    except (struct.error, ValueError, EOFError, OSError) as error:
        raise UserError(f"{places[0]}: not to be read as IDX: {error}") from error


def _samples(images: np.ndarray, labels: np.ndarray, size: int, start: int, count: int) -> Iterator[dict[str, Any]]:
    """Of `count` images from `start` on, or those that there are."""
    height, width = images.shape[1:]
    top, left = (size - height) // 2, (size - width) // 2
    for number in range(start, min(start + count, len(images))):
        padded = np.zeros((size, size), np.uint8)
        padded[top : top + height, left : left + width] = images[number]
        buffer = io.BytesIO()
        Image.fromarray(padded).save(buffer, "png")
        label = int(labels[number])
        facts = f'{{"label": {label}, "class": "{FASHION[label]}", "caption": "{FASHION[label]}"}}'
        yield {"__key__": f"{number:05d}", "png": buffer.getvalue(), "json": facts.encode()}
