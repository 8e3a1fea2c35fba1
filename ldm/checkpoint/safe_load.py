"""torch.load for untrusted files: tensors and plain containers, of no more bytes than the file has."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from ldm.errors import UserError

DAMAGE = (
    UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, LookupError, AttributeError, TypeError, MemoryError,
)  # fmt: skip


def load(path: Path, shown: str, lazy: bool = False) -> Any:
    """What ``torch.save`` wrote, on the CPU. Raises ValueError, which names the file as `shown`, if it is not that.

    `lazy` maps the file into memory, whose pages are read when they are used.
    """
    with _readable(path, shown):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=lazy)


def classes(path: Path, shown: str) -> list[str]:
    """Names of the classes that `load` would refuse; none in torch's format before 1.6, which cannot tell."""
    with _readable(path, shown):
        if not zipfile.is_zipfile(path):
            return []
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)


@contextmanager
def _readable(path: Path, shown: str) -> Iterator[None]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                    raise UserError(f"{shown}: compressed, as torch writes none; a few bytes may stand for gigabytes")
        yield
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:  # it is not about what is in the file
            raise
        raise UserError(f"{shown}: damaged, or not a file that can be read without running code") from error
