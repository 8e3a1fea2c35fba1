"""Durable files: written under a temporary name beside the target, synced, renamed; hashed when read back.

A crash at any moment leaves the old file or the new one, never a part of either.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

TEMPORARY = ".writing-"
MAX_JSON_BYTES = 1 << 24


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes. Raises FileNotFoundError for what is no regular file: a pipe may have no end."""
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write(temporary)` make a file or folder, then put it at `path` in one rename.

    A folder that is there already is moved aside first. Raises OSError naming `path` and the way out when the disk is
    full; the previous content stays.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    aside = path.with_name(f"{TEMPORARY}{os.getpid()}-old-{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(temporary)
        for inner in sorted(temporary.rglob("*")) if temporary.is_dir() else ():
            sync(inner)
        sync(temporary)
        if path.is_dir():
            path.replace(aside)
        temporary.replace(path)
        sync(path.parent)
        _remove(aside)
    except BaseException as error:
        _remove(temporary)
        if aside.exists() and not path.exists():
            aside.replace(path)
        if _is_disk_full(error):
            free = shutil.disk_usage(path.parent).free / 2**20
            raise OSError(
                errno.ENOSPC,
                f"no space left to write {path} ({free:.0f} MiB free); what was saved before is intact: "
                "free space or move runs_dir, then start the same command again",
            ) from error
        raise


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether it comes from a full disk or quota, which torch and safetensors wrap in errors of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(f"(os error {number})" in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            return True
        error = error.__cause__ or error.__context__
    return False


def read_text(path: Path, max_bytes: int) -> str:
    """A text file that may come from anyone. Raises ValueError if it is no text, or larger."""
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{path}: larger than {max_bytes} bytes, so not what its name says")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that may come from anyone. Raises ValueError if it is not one."""
    try:
        content = json.loads(read_text(path, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a JSON object")
    return content


def write_bytes(path: Path, content: bytes) -> Path:
    """Durably write a file of these bytes; its folders are made. Returns `path`."""
    replace(path, lambda temporary: temporary.write_bytes(content))
    return path


def write_text(path: Path, text: str) -> Path:
    """Durably write a text file."""
    return write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> Path:
    """Durably write JSON, indented for people. Returns `path`."""
    return write_text(path, json.dumps(content, indent=2) + "\n")


def sweep(folder: Path) -> None:
    """Remove what an interrupted write left in `folder`."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
