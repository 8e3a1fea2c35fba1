"""Rows on disk in place of memory: what each of several processes makes of its share, then all in order on the first.

The files have no name, so that nothing of them is left behind, however a process ends.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.files import refusals_named
from ldm.training.distributed import collect, gather_objects

CHUNK_BYTES = 1 << 25  # that a process reads, and sends, at a time


class Spool:
    """Rows [N, ...] of one shape and dtype in a file of `folder`, in the order in which they were added."""

    def __init__(self, folder: Path):
        self.folder = folder
        with refusals_named(folder / "temporary"):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it lives as long as this does
        self._like: np.ndarray | None = None
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, rows: Tensor | np.ndarray) -> None:
        """Append rows [n, ...], which are copied from wherever they lie."""
        values = np.ascontiguousarray(rows.cpu().numpy() if isinstance(rows, Tensor) else rows)
        if self._like is None:
            self._like = values[:0]
        if (values.shape[1:], values.dtype) != (self._like.shape[1:], self._like.dtype):
            raise UserError(f"rows {list(values.shape[1:])} do not go with those before, {list(self._like.shape[1:])}")
        with refusals_named(self.folder / "temporary"):
            self._file.write(values.data)
        self._length += len(values)

    def whole(self) -> Tensor:
        """All rows [N, ...], memory-mapped. Raises ValueError where there are none."""
        if not len(self):
            raise UserError(f"{self.folder}: there is nothing to read")
        with refusals_named(self.folder / "temporary"):
            self._file.flush()
        shape = (len(self), *self._like.shape[1:])
        mapped = np.memmap(self._file, self._like.dtype, "c", shape=shape)  # copy on write: torch wants it writable
        self._file.seek(0, 2)
        return torch.from_numpy(mapped)

    def blocks(self) -> Iterator[Tensor]:
        """All rows in order, some at a time."""
        if len(self):
            yield from self.whole().split(self.rows_of_chunk)

    @property
    def rows_of_chunk(self) -> int:
        """How many rows are read at a time."""
        return max(1, CHUNK_BYTES // max(1, int(np.prod(self._like.shape[1:])) * self._like.dtype.itemsize))


def merged(spool: Spool) -> Spool:
    """The rows of all ranks, of which row j of rank r is number j * ranks + r, in order of their numbers, on rank 0.

    All ranks call it together, with at least a row each or none at all; elsewhere it is the rank's own spool.
    """
    lengths = gather_objects(len(spool))
    if len(lengths) == 1 or not max(lengths):
        return spool
    every, step = Spool(spool.folder), spool.rows_of_chunk if len(spool) else 1
    step = max(1, min(gather_objects(step)) // len(lengths))  # rank 0 holds a chunk of each
    own = spool.whole() if len(spool) else None
    for start in range(0, max(lengths), step):
        parts = collect(own[start : start + step].clone() if own is not None else None)
        found = [part for part in parts if part is not None and len(part)]
        if found:
            numbers = torch.cat([torch.arange(len(part)) for part in found])  # sort is stable: of equal ones by rank
            every.add(torch.cat(found)[numbers.argsort(stable=True)])
    return every if len(every) else spool
