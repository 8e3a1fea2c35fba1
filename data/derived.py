"""Files of what is derived from shards and can be derived again: a JSON head and a block of bytes, both under hashes.

They lie in $LDM_CACHE (~/.cache/ldm). One that is missing, damaged or not of this kind is None to those that read it.
"""

import hashlib
import json
import mmap
import os
from io import BufferedReader
from pathlib import Path
from typing import Any

MAGIC = b"ldm derived data 1\n"
PREFIX_BYTES = len(MAGIC) + 32 + 4  # the magic, a SHA-256 of the head, the head's length
MAX_HEAD_BYTES = 1 << 20
ALIGNMENT = 64


def cache_folder() -> Path:
    """The folder of everything that is cached: $LDM_CACHE, or ~/.cache/ldm."""
    return Path(os.environ.get("LDM_CACHE") or Path.home() / ".cache" / "ldm").expanduser()


def write(path: Path, head: dict[str, Any], body: bytes | memoryview) -> None:
    """Write both under a temporary name, then rename; whoever reads sees all of it or nothing."""
    own = {**head, "body_bytes": len(body), "body_sha256": hashlib.sha256(body).hexdigest()}
    text = json.dumps(own).encode()
    prefix = MAGIC + hashlib.sha256(text).digest() + len(text).to_bytes(4, "little")
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(prefix + text + bytes(-(len(prefix) + len(text)) % ALIGNMENT))
            file.write(body)
        os.replace(partial, path)
    except OSError as error:
        reason = f"{path.parent}: cannot be written ({error.strerror}); set LDM_CACHE to a folder that can"
        raise ValueError(reason) from error


def read_head(path: Path) -> dict[str, Any] | None:
    """The head alone, if it is whole and the file as long as it should be."""
    try:
        with open(path, "rb") as file:
            found = _head(file)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found and found[0]


def read(path: Path, check: bool) -> tuple[dict[str, Any], memoryview] | None:
    """The head, and the body as a memory map; its hash too is looked at if `check`."""
    try:
        with open(path, "rb") as file:
            found = _head(file)
            if found is None:
                return None
            head, start = found
            body = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[start:]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if check and hashlib.sha256(body).hexdigest() != head["body_sha256"]:
        return None
    return head, body


def _head(file: BufferedReader) -> tuple[dict[str, Any], int] | None:
    """The head and where the body begins."""
    prefix = file.read(PREFIX_BYTES)
    length = int.from_bytes(prefix[-4:], "little")
    if len(prefix) < PREFIX_BYTES or not prefix.startswith(MAGIC) or length > MAX_HEAD_BYTES:
        return None
    text = file.read(length)
    if hashlib.sha256(text).digest() != prefix[len(MAGIC) : -4]:
        return None
    head = json.loads(text)
    start = -(-(PREFIX_BYTES + length) // ALIGNMENT) * ALIGNMENT
    whole = os.fstat(file.fileno()).st_size == start + head["body_bytes"]
    return (head, start) if whole else None
