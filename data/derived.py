"""Cached files that are derived from shards and can be rebuilt: a block of bytes and a JSON header, both hashed.

They lie in $LDM_CACHE (~/.cache/ldm). Reading one that is missing, damaged or of another kind gives None.
The head stands at the end, so that a block of any length can be written as it is made, and mapped from its first byte.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path
from typing import Any
from uuid import uuid4

from ldm.data.user_error import UserError

MAGIC = b"ldm derived data 1\n"
TRAILER_BYTES = 4 + 32 + len(MAGIC)  # the head's length, its SHA-256, the magic
MAX_HEAD_BYTES = 1 << 20
UNUSABLE = (OSError, ValueError, KeyError, TypeError, RecursionError)  # what reading untrusted bytes may raise


def cache_folder() -> Path:
    """The cache folder: $LDM_CACHE, or ~/.cache/ldm. Raises ValueError if the user has no home directory."""
    try:
        return Path(os.environ.get("LDM_CACHE") or Path.home() / ".cache" / "ldm").expanduser()
    except RuntimeError as error:
        raise UserError(f"no folder for a cache ({error}): set LDM_CACHE, or HOME") from error


def write(path: Path, head: dict[str, Any], chunks: Iterable[bytes | memoryview]) -> None:
    """Write the block in chunks, then the head, under another name, then rename: it is there whole or not at all."""
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    digest = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
            text = json.dumps({**head, "body_bytes": file.tell(), "body_sha256": digest.hexdigest()}).encode()
            file.write(text + len(text).to_bytes(4, "little") + hashlib.sha256(text).digest() + MAGIC)
        os.replace(partial, path)
    except OSError as error:
        reason = f"{path.parent}: cannot be written ({error.strerror}); set LDM_CACHE to a folder that can"
        raise UserError(reason) from error


def read_head(path: Path) -> dict[str, Any] | None:
    """The header alone, or None unless it is intact and the file has its full length."""
    try:
        with open(path, "rb") as file:
            return _head(file)
    except UNUSABLE:
        return None


def read(path: Path, check: bool) -> tuple[dict[str, Any], memoryview] | None:
    """The header, and the block as a memory map; `check` verifies the block's hash too."""
    try:
        with open(path, "rb") as file:
            head = _head(file)
            if head is None:
                return None
            body = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[: head["body_bytes"]]
    except UNUSABLE:
        return None
    if check and hashlib.sha256(body).hexdigest() != head["body_sha256"]:
        return None
    return head, body


def _head(file: BufferedReader) -> dict[str, Any] | None:
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - TRAILER_BYTES))
    trailer = file.read(TRAILER_BYTES)
    length = int.from_bytes(trailer[:4], "little")
    start = size - TRAILER_BYTES - length
    if not trailer.endswith(MAGIC) or len(trailer) < TRAILER_BYTES or length > MAX_HEAD_BYTES or start < 0:
        return None
    file.seek(start)
    text = file.read(length)
    if hashlib.sha256(text).digest() != trailer[4:36]:
        return None
    head = json.loads(text)
    return head if head["body_bytes"] == start else None
