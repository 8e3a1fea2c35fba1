"""NaN and infinity in nested containers of tensors: found, and refused by name before they are used."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint import rows as shards
from ldm.errors import UserError


def not_finite(state: Any, name: str = "") -> str | None:
    """The name of the first tensor in nested containers that holds a NaN or an infinity; None if there is none.

    One pass over each tensor, of a sharded one over this rank's rows. A mask that is -inf on purpose counts too.
    """
    return next((where for where, tensor in _tensors(state, name) if not _is_finite(shards.local(tensor))), None)


def check_finite(state: Any, source: str | Path) -> None:
    """Raises ValueError naming the `source`, as a file, and its first tensor with a NaN or an infinity."""
    name = not_finite(state)
    if name is not None:
        raise UserError(f"{source}: {name} holds a NaN or an infinity; take weights from before that")


def _is_finite(tensor: Tensor) -> bool:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.itemsize == 1:  # float8 has no minimum
        tensor = tensor.float()
    return bool(torch.stack(tensor.aminmax()).isfinite().all())


def _tensors(state: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, dict | list | tuple):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
