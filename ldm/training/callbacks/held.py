"""A run whose folder was taken over by another process stops before it writes anything more."""

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl

from ldm.holding import Hold
from ldm.training.callbacks.checkpoint import Checkpoint
from ldm.training.task import Task


class WhileHeld(pl.Callback):
    """Checks that `hold` is still valid before the other callbacks run, and before each of `saving` writes."""

    def __init__(self, hold: Hold, saving: Iterable[Checkpoint]):
        self.hold = hold
        for callback in saving:
            callback.before_writing = hold.check

    def on_train_batch_end(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        self.hold.check()

    def on_train_end(self, trainer: pl.Trainer, task: Task) -> None:
        self.hold.check()
