"""Collective operations, the same code for one process and many, and the error when another rank is gone."""

import atexit
import os
import pickle
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ldm.errors import UserError

Item = TypeVar("Item")
# In what gloo and NCCL raise: the other end of a connection is gone. A peer that is only late, or in another
# collective, is something else.
GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "ncclRemoteError")


class LostRank(UserError):
    """Another rank ended while this one waited for it; that rank's output, or its launcher's, says why."""


@contextmanager
def lost_ranks_named() -> Iterator[None]:
    """Raise LostRank in place of what a collective raises when another rank is gone."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not any(mark in text for mark in GONE):
            raise
        reason = re.sub(r"^\[\S+\] ", "", text.splitlines()[0].split(". ")[0])  # without gloo's source file and line
        raise LostRank(
            f"rank {_rank()}: another rank ended while this one waited for it ({reason}); look for what that one said, "
            "or for its exit status where the ranks were launched, then start the same command again"
        ) from error


@contextmanager
def process_group(device: torch.device) -> Iterator[tuple[int, int]]:
    """(rank, world size) of a script under torchrun, with its process group; (0, 1) of one that was started alone.

    Within another one it is that one: a script that measures several things has one group for all. Raises LostRank if
    another rank ends early.
    """
    if dist.is_initialized():
        yield dist.get_rank(), dist.get_world_size()
        return
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield 0, 1
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")  # objects are sent by gloo
    try:
        with lost_ranks_named():
            yield dist.get_rank(), world_size
    finally:
        end_process_group()


def end_process_group() -> None:
    """End the group that a trainer began, on each rank when its part is done and no other waits for it.

    A process that leaves it to the interpreter's end may abort there: gloo's threads still run (pytorch #190489).
    """
    global _was_rank
    if _world_size() > 1:
        _was_rank = True
        dist.destroy_process_group()


_was_rank = False  # of several, in a group that has ended


def leave(status: int) -> NoReturn:
    """End the process with `status`; one of several ranks without the interpreter's own end.

    Groups within the group, such as those of a mesh, live on in what refers to them, and their threads abort there.
    """
    if _was_rank:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_reduce_sum(value: Tensor) -> Tensor:
    """`value` summed over all ranks; itself when there is one."""
    if _world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def mean_over_ranks(value: Tensor) -> Tensor:
    """`value` averaged over all ranks; itself when there is one."""
    return all_reduce_sum(value) / _world_size() if _world_size() > 1 else value


def broadcast(value: Any) -> Any:
    """Rank zero's `value`, a plain object, on every rank."""
    held = [value]
    if _world_size() > 1:
        dist.broadcast_object_list(held)
    return held[0]


def gather_objects(value: Any) -> list[Any]:
    """`value`, a plain object, of every rank, in their order."""
    if _world_size() == 1:
        return [value]
    found = [None] * _world_size()
    dist.all_gather_object(found, value)
    return found


def collect(value: Any) -> list[Any]:
    """`value`, a plain object or tensors in the memory of the CPU, of every rank in their order; [] on ranks but 0."""
    if _world_size() == 1:
        return [value]
    found = [None] * _world_size() if _rank() == 0 else None
    dist.gather_object(value, found)
    return found or []


@contextmanager
def together() -> Iterator[None]:
    """Re-raise one rank's error, a ValueError or an OSError, on all ranks, which enter this together.

    What cannot be sent as it is reaches the others as a UserError of the same words.
    """
    error: Exception | None = None
    try:
        yield
    except (ValueError, OSError) as own:
        error = own
    errors = [found for found in gather_objects(_sendable(error)) if found is not None]
    if error is not None or errors:
        raise error or errors[0]


def _sendable(error: Exception | None) -> Exception | None:
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # of a constructor that takes more than its message, and whatever that raises without
        return UserError(str(error))


def max_over_ranks(value: int, device: torch.device) -> int:
    """The largest `value` of all ranks."""
    if _world_size() == 1:
        return value
    largest = torch.tensor(value, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def in_step(items: Iterable[Item], fallback: Iterable[Item], device: torch.device) -> Iterator[tuple[Item, bool]]:
    """(item, whether it is one of this rank's own `items`), equally many on each rank.

    What is reduced or gathered needs all ranks: one that has no items left goes on with its last one, or with the first
    of `fallback`, and throws away what comes of it.
    """
    own = iter(items)
    last: Item | None = None
    while True:
        item = next(own, None)
        if not max_over_ranks(int(item is not None), device):
            return
        last = item if item is not None else last if last is not None else next(iter(fallback))
        yield last, item is not None


def gather(value: Tensor) -> list[Tensor]:
    """`value` of every rank, in their order; all have its shape."""
    if _world_size() == 1:
        return [value]
    found = [torch.empty_like(value) for _ in range(_world_size())]
    dist.all_gather(found, value.contiguous())
    return found


def share(values: Tensor) -> Tensor:
    """This rank's part of sums [ranks, 2, names] gathered over ranks; an equal share if their number has changed."""
    values = values.reshape(-1, *values.shape[-2:])  # older checkpoints hold one share [2, names]
    if len(values) == _world_size() > 1:
        return values[dist.get_rank()]
    return values.sum(0) / _world_size() if len(values) > 1 else values[0]


def means_over_ranks(sums: dict[str, Tensor], count: float) -> dict[str, float]:
    """Means of named sums of `count` values on each rank; one transfer to the host for all names."""
    if not sums:
        return {}
    device = next(iter(sums.values())).device
    packed = torch.stack([v.double().cpu() for v in sums.values()] + [torch.tensor(float(count), dtype=torch.float64)])
    total = all_reduce_sum(packed.float().to(device) if device.type != "cpu" else packed).cpu().double()
    return {name: (total[place] / total[-1]).item() for place, name in enumerate(sums)}
