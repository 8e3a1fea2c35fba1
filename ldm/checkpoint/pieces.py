"""Weights read again from their file, a piece at a time, so that they never are in memory twice."""

from collections.abc import Iterator

from safetensors import safe_open
from torch import Tensor

from ldm.checkpoint import base
from ldm.checkpoint.weights import Weights

PIECES = 16  # a file is read in as many, or tensor by tensor


def pieces(found: Weights) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of weights whose file was read and hashed before, which is not done again.

    They are views of the file, which is let go after each piece: copy what is to stay.
    """
    if found.metadata.get("base"):
        yield from base.load(found.path.parent, found.metadata["base"], found.path).items()
    with safe_open(found.path, "pt") as tensors:
        names = list(tensors.keys())
    size, place = found.path.stat().st_size // PIECES, 0
    while place < len(names):
        taken = 0
        with safe_open(found.path, "pt") as tensors:
            while place < len(names) and taken <= size:
                tensor = tensors.get_tensor(names[place])
                taken, place = taken + tensor.nbytes, place + 1
                yield names[place - 1], tensor
                del tensor
