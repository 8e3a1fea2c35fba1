"""Several callbacks as one. Lightning asks every callback at every hook; of ten, most have nothing to say to most."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl

HOOKS = tuple(name for name in vars(pl.Callback) if name.startswith("on_") or name in ("setup", "teardown"))


class Group(pl.Callback):
    """Calls its `members` in their order, each at the hooks that it defines."""

    def __init__(self, members: Sequence[pl.Callback]):
        self.members = tuple(members)
        for hook in HOOKS:
            hooks = [getattr(member, hook) for member in self.members]
            own = [own for own in hooks if getattr(own, "__func__", own) is not getattr(pl.Callback, hook)]
            if own:
                setattr(self, hook, partial(_call, own))


def _call(hooks: list[Callable], *arguments: Any, **named: Any) -> None:
    for hook in hooks:
        hook(*arguments, **named)


def members(trainer: pl.Trainer) -> Iterator[pl.Callback]:
    """All callbacks of a trainer, those of its groups one by one."""
    for callback in trainer.callbacks:
        yield from getattr(callback, "members", (callback,))
