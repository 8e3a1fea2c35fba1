"""What tells that a file of a cache is the one that was written: whose it is, a sum for each row, a digest over all.

The sums are looked at whenever a row is read, the digest on demand. Files from before have no label: taken as they are.
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
SUMS = "sums."  # begins the name of the sums of what bears the rest of it


def row_sum(row: np.ndarray, number: int) -> int:
    """A sum over a row's bytes and its place, CRC-32."""
    return zlib.crc32(np.ascontiguousarray(row).data, number & 0xFFFFFFFF)


def labelled(
    arrays: Mapping[str, np.ndarray], facts: Mapping[str, str], name: str, cache: str, plain: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """The arrays of a file, and what tells them: its `name`, the seal of its `cache`, sums of rows, a digest over all.

    `facts` are its metadata. The arrays named in `plain` are small and read whole: they have no sums.
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
    """Whether a file has a label that its content can be held to. Raises ShardError if it is not as it was written."""
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
    """The label in a file's array of it, an empty one if it has none. Raises ValueError if it is none."""
    label = {} if array is None else json.loads(array.tobytes())
    if not isinstance(label, dict):
        raise UserError("its label cannot be read")
    return label


def stranger(label: Mapping[str, Any], name: str, cache: str | None) -> str | None:
    """What speaks against a file of this label and `name` being of the cache with this seal; None if nothing does."""
    if label.get("name", name) != name:
        return f"it was written as {label['name']}"
    if cache is not None and label.get("cache", cache) != cache:
        return "it is of a cache that was made otherwise"
    return None
