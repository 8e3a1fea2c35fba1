"""Arrays of .npz files, read in blocks and written in one pass: as ADM's evaluator reads and publishes them.

Files are untrusted: nothing is unpickled, and no header has more memory taken than its member has bytes.
"""

import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.files import replace

MAX_SMALL_BYTES = 1 << 30  # of an array that is read whole: a covariance of 2048 dimensions has 32 MiB
BROKEN = (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError)
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Npz:
    """The arrays of one file. Raises ValueError for a file that is none."""

    def __init__(self, path: Path):
        self.path = path
        with self._named(), zipfile.ZipFile(path) as archive:
            self.comment = archive.comment
            self.names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one array, from its header."""
        with self._member(name) as (_, shape, _):
            return shape

    def floats(self, name: str) -> Tensor:
        """A small array of floats, whole, in float64. Raises ValueError unless it is one and finite."""
        with self._member(name) as (member, shape, dtype):
            size = int(np.prod(shape)) * dtype.itemsize
            if dtype.kind != "f" or size > MAX_SMALL_BYTES:
                raise UserError(f"{self.path}: {name} is {dtype} {list(shape)}, expected floats, at most 1 GiB")
            values = np.frombuffer(_read(member, size), dtype).reshape(shape)
        if not np.isfinite(values).all():
            raise UserError(f"{self.path}: {name} has values that are not finite")
        return torch.from_numpy(values.astype(np.float64))

    def images(self, name: str, batch_size: int = 100) -> Iterator[Tensor]:
        """Batches [B, 3, H, W] in [-1, 1] of an array uint8 [N, H, W, 3]. Raises ValueError for another."""
        with self._member(name) as (member, shape, dtype):
            if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not all(shape):
                raise UserError(f"{self.path}: {name} is {dtype} {list(shape)}, expected uint8 [N, H, W, 3]")
            size = int(np.prod(shape[1:]))
            for start in range(0, shape[0], batch_size):
                count = min(batch_size, shape[0] - start)
                rows = np.frombuffer(_read(member, count * size), np.uint8).reshape(count, *shape[1:])
                yield torch.from_numpy(rows.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1

    @contextmanager
    def _member(self, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
        """The values of one array as a stream, with its shape and dtype; it holds as many bytes as they need."""
        with self._named(), zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as member:
            version = np.lib.format.read_magic(member)
            shape, fortran, dtype = HEADERS.get(version, _unknown)(member)
            needed = member.tell() + dtype.itemsize * int(np.prod([int(side) for side in shape], dtype=object))
            if dtype.hasobject or fortran or archive.getinfo(f"{name}.npy").file_size != needed:
                raise UserError(f"{self.path}: {name} is no plain array, or has been cut")
            yield member, shape, dtype

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except KeyError as error:
            raise UserError(f"{self.path}: {error.args[0]}") from error
        except BROKEN as error:
            raise UserError(f"{self.path}: cannot be read as .npz ({str(error).splitlines()[0][:200]})") from error


def write_images(path: Path, blocks: Iterable[Tensor], shape: tuple[int, ...], comment: str) -> None:
    """Durably write `arr_0`, uint8 of `shape` [N, H, W, 3], from blocks of its rows; the bytes depend on nothing else.

    `comment`, of the archive, says what they are. Where something was left by a write that was killed, it goes.
    """
    for left in path.parent.glob(f".writing-*-{path.name}"):
        left.unlink()
    replace(path, lambda temporary: _write(temporary, blocks, shape, comment))


def _write(path: Path, blocks: Iterable[Tensor], shape: tuple[int, ...], comment: str) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = comment.encode()
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for block in blocks:
                member.write(block.contiguous().numpy().data)


def _read(member: IO[bytes], size: int) -> bytes:
    found = member.read(size)
    if len(found) != size:
        raise EOFError("it ends early")
    return found


def _unknown(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    raise NotImplementedError("of an unknown version of the format")
