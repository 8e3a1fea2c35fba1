"""Tensors of which every rank holds some rows (FSDP): split for saving, put together for any number of ranks.

In a state, a split tensor is ``{"sharded": shape}``; rank r's rows lie under the tensor's path in a file of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs

MARK = "sharded"


@dataclass(frozen=True)
class Rows:
    """A whole tensor of this `shape` as the pieces that ranks wrote, in their order; nothing is copied before it is
    asked for.
    """

    shape: torch.Size
    pieces: Sequence[Tensor]

    def take(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop`, of those pieces that hold some."""
        found, first = [], 0
        for piece in self.pieces:
            last = first + len(piece)
            if first < stop and last > start:
                found.append(piece[max(start - first, 0) : stop - first])
            first = last
        return torch.cat(found) if found else self.pieces[0][:0]

    def whole(self) -> Tensor:
        """The tensor itself."""
        return torch.cat(list(self.pieces))


def is_sharded(tensor: Any) -> "TypeIs[DTensor]":
    """Whether this is a DTensor, recognised by its methods: importing the class takes a second."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This rank's rows of a tensor, the same memory; the tensor itself where it is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def split(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """A state without its sharded tensors, and this rank's rows of them by their path."""
    own: dict[str, Tensor] = {}

    def cut(path: str, tensor: Any) -> Any:
        if not is_sharded(tensor):
            return tensor
        own[path] = tensor.to_local().detach().cpu()
        return {MARK: list(tensor.shape)}

    return mapped(state, cut), own


def joined(state: Any, pieces: Sequence[Mapping[str, Tensor]], lazy: bool = False) -> Any:
    """The state that `split` took apart, from all ranks' `pieces`; `lazy` leaves the tensors as Rows.

    Raises ValueError if the pieces are not those of the state.
    """

    def join(path: str, mark: Any) -> Any:
        if not (isinstance(mark, dict) and mark.keys() == {MARK}):
            return mark
        if any(path not in own for own in pieces):
            raise UserError(f"the rows of {path} are missing")
        rows = Rows(torch.Size(mark[MARK]), [own[path] for own in pieces])
        if sum(map(len, rows.pieces)) != rows.shape[0] or any(p.shape[1:] != rows.shape[1:] for p in rows.pieces):
            raise UserError(f"the rows of {path} are not those of a tensor of {tuple(rows.shape)}")
        return rows if lazy else rows.whole()

    return mapped(state, join)


def mapped(state: Any, change: Callable[[str, Any], Any], path: str = "") -> Any:
    """`state`, nested containers, with every leaf and every mark changed."""
    if isinstance(state, dict) and state.keys() != {MARK}:
        return {k: mapped(v, change, f"{path}.{k}" if path else str(k)) for k, v in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(mapped(v, change, f"{path}.{i}" if path else str(i)) for i, v in enumerate(state))
    return change(path, state)


def placed(value: Tensor | Rows, like: Tensor) -> Tensor:
    """A whole `value`, sharded as `like` is: this rank's rows of it, or all of it if `like` is not sharded."""
    if not is_sharded(like):
        return value.whole() if isinstance(value, Rows) else value
    if is_sharded(value):
        return value
    from torch.distributed.tensor import DTensor, Shard

    own = like.to_local()
    length = -(-like.shape[0] // like.device_mesh.size())
    start = min(like.device_mesh.get_local_rank() * length, like.shape[0])
    stop = start + own.shape[0]
    rows = value.take(start, stop) if isinstance(value, Rows) else value[start:stop]
    rows = torch.empty_like(own, dtype=rows.dtype).copy_(rows)
    return DTensor.from_local(
        rows, like.device_mesh, [Shard(0)], run_check=False, shape=like.shape, stride=like.stride()
    )


def whole(states: Mapping[str, Mapping[str, Tensor]], keep: bool) -> dict[str, dict[str, Tensor]]:
    """State dicts with whole tensors, one after the other, for the rank that is to `keep` them; empty for others.

    All ranks call it together.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for kind, state in states.items():
        kept = {}
        for name, tensor in state.items():
            one = tensor.full_tensor().detach() if is_sharded(tensor) else tensor
            if keep:
                kept[name] = one.cpu() if is_sharded(tensor) else one
        found[kind] = kept
    return found if keep else {}
