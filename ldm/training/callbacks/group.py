"""Several callbacks as one: Lightning calls every callback at every hook, although most define only a few hooks."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pytorch_lightning as pl

HOOKS = tuple(name for name in vars(pl.Callback) if name.startswith("on_") or name in ("setup", "teardown"))


class Group(pl.Callback):
    """Calls its `members` in their order, each at the hooks that its class defines; a group's are taken out of it."""

    def __init__(self, callbacks: Iterable[pl.Callback]):
        self.members = tuple(_each(callbacks))
        for hook in HOOKS:
            own = [getattr(m, hook) for m in self.members if getattr(type(m), hook) is not getattr(pl.Callback, hook)]
            if own:
                setattr(self, hook, partial(_call, own))


def _call(hooks: list[Callable], *arguments: Any, **named: Any) -> None:
    for hook in hooks:
        hook(*arguments, **named)


def members(trainer: pl.Trainer) -> Iterator[pl.Callback]:
    """All callbacks of a trainer, those of its groups one by one."""
    return _each(trainer.callbacks)  # type: ignore[attr-defined]  # Lightning sets it


def _each(callbacks: Iterable[pl.Callback]) -> Iterator[pl.Callback]:
    for callback in callbacks:
        yield from getattr(callback, "members", (callback,))
