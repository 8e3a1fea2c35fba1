"""Durable files: written under a temporary name beside the target, synced, renamed; hashed when read back.

A crash at any moment leaves the old file or the new one, never a part of either.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ldm.errors import UserError

TEMPORARY = ".writing-"
MAX_JSON_BYTES = 1 << 24
# Errors of a disk, and what to do about each.
WAYS_OUT = {
    errno.ENOSPC: "free space or move runs_dir",
    errno.EDQUOT: "free space, have the quota raised or move runs_dir",
    errno.EROFS: "make the disk writable or move runs_dir",
    errno.EIO: "look at the disk's health (dmesg) or move runs_dir",
}


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes. Raises FileNotFoundError unless it is a regular file: a pipe may have no end."""
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

    A folder that is there already is moved aside first, for another folder only. Raises OSError naming `path` and the
    way out when the disk is full, broken or read-only; the previous content stays.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    aside = path.with_name(f"{TEMPORARY}{os.getpid()}-old-{path.name}")
    with refusals_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            if path.is_dir() and not temporary.is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder is there already, and stays; give another name", path)
            for inner in sorted(temporary.rglob("*")) if temporary.is_dir() else ():
                sync(inner)
            sync(temporary)
            if path.is_dir():
                path.replace(aside)
            temporary.replace(path)
            sync(path.parent)
            _remove(aside)
        except BaseException:
            _remove(temporary)
            if aside.exists() and not path.exists():
                aside.replace(path)
            raise


@contextmanager
def refusals_named(path: Path) -> Iterator[None]:
    """Re-raise disk errors, however torch and safetensors wrap them, as an OSError that says what to do."""
    try:
        yield
    except Exception as error:
        number = _refusal(error)
        if number is None:
            raise
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        raise OSError(
            number,
            f"{os.strerror(number).lower()}: cannot write {path} ({shutil.disk_usage(folder).free / 2**20:.0f} MiB "
            f"free); what was saved before is intact: {WAYS_OUT[number]}, then start the same command again",
        ) from error


def _refusal(error: BaseException | None) -> int | None:
    """The errno of the disk error that caused an error, if it is one of `WAYS_OUT`."""
    while error is not None:
        for number in WAYS_OUT:
            if (isinstance(error, OSError) and error.errno == number) or f"(os error {number})" in str(error):
                return number
        error = error.__cause__ or error.__context__
    return None


def read_text(path: Path, max_bytes: int) -> str:
    """Read an untrusted text file. Raises ValueError if it is not text, or larger than `max_bytes`."""
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise UserError(f"{path}: larger than {max_bytes} bytes, so not what its name says")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read an untrusted JSON object. Raises ValueError if the file is not one."""
    try:
        content = json.loads(read_text(path, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object")
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


def discard(path: Path) -> None:
    """Remove a file or folder so that no part of it is ever seen under its name."""
    aside = path.with_name(f"{TEMPORARY}{os.getpid()}-old-{path.name}")
    path.replace(aside)
    _remove(aside)


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
