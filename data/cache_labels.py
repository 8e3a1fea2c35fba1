"""Integrity labels of cache files: the cache that a file belongs to, a checksum for each row, a digest over all.

Checksums are verified whenever a row is read, the digest on demand. Older files have no label and are not verified.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ldm.data.errors import ShardError
from ldm.data.user_error import UserError

LABEL = "label"  # JSON as an array of bytes: two entries of metadata would be written in any order
SUMS = "sums."  # prefix: "sums.NAME" holds the row checksums of array NAME


def row_sum(row: np.ndarray, number: int) -> int:
    """Checksum (CRC-32) of a row's bytes and its number."""
    return zlib.crc32(np.ascontiguousarray(row).data, number & 0xFFFFFFFF)


def labelled(
    arrays: Mapping[str, np.ndarray], facts: Mapping[str, str], name: str, cache: str, plain: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """The arrays of a file with its label: its `name`, the seal of its `cache`, row checksums, a digest over all.

    `facts` are its metadata. The arrays named in `plain` are small and read whole: they have no row checksums.
    """
    sums = {
        SUMS + key: np.array([row_sum(row, number) for number, row in enumerate(array)], np.int64)
        for key, array in arrays.items()
        if key not in plain
    }
    whole = {**arrays, **sums}
    label = {"name": name, "cache": cache, "sha256": digest(whole, facts)}
    return {**whole, LABEL: np.frombuffer(json.dumps(label).encode(), np.uint8)}


def digest(arrays: Mapping[str, np.ndarray], facts: Mapping[str, str]) -> str:
    """SHA-256 over all arrays and metadata of a file but its label."""
    found = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode())
    for key, array in sorted(arrays.items()):
        if key == LABEL:
            continue
        found.update(f"{key} {array.dtype} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def check_digest(path: Path) -> bool:
    """Verify a file's content against its label; False if it has none. Raises ShardError if they do not match."""
    try:
        with safe_open(path, "np") as file:
            arrays, facts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        label = read_label(arrays.get(LABEL))
    except (SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise ShardError(f"{path} is damaged ({error}); delete it and encode again") from None
    if label and label.get("sha256") != digest(arrays, facts):
        raise ShardError(f"{path} is not as it was written; delete it and encode again")
    return bool(label)


def read_label(array: np.ndarray | None) -> dict[str, Any]:
    """Parse a file's label array; an empty label if there is no array. Raises ValueError if it is not a label."""
    label = {} if array is None else json.loads(array.tobytes())
    if not isinstance(label, dict):
        raise UserError("its label cannot be read")
    return label


def stranger(label: Mapping[str, Any], name: str, cache: str | None) -> str | None:
    """Why a file with this label and `name` cannot belong to the cache with this seal; None if it can."""
    if label.get("name", name) != name:
        return f"it was written as {label['name']}"
    if cache is not None and label.get("cache", cache) != cache:
        return "it is of a cache that was made otherwise"
    return None
