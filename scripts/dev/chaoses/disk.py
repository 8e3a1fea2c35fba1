"""A small file system for a test, to be filled or made read-only."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CannotMount(Exception):
    """Mounting needs root."""


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """`folder` as a file system of this `size` (as ``600k``) in memory, gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    if _mount("-t", "tmpfs", "-o", f"size={size}", "chaos", str(folder)):
        raise CannotMount(str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def remount(folder: Path, option: str) -> None:
    """Change what a small disk allows: ``size=8m``, ``ro``, ``rw``."""
    if _mount("-o", f"remount,{option}", str(folder)):
        raise CannotMount(str(folder))


def _mount(*words: str) -> int:
    return subprocess.run(["mount", *words], capture_output=True).returncode
