"""SIGINT, SIGTERM and SIGUSR1 save and stop: a handler sets a flag, all ranks agree on it at the end of a step."""

import signal
from typing import Any

import pytorch_lightning as pl

from ldm.training.task import Task

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopOnSignal(pl.Callback):
    """The first signal stops at the next step, which is then saved; a second SIGINT stops at once.

    With several ranks the flag is shared every `agree_every_steps` steps.
    """

    def __init__(self, agree_every_steps: int = 10):
        self.agree_every_steps = agree_every_steps
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, task: Task) -> None:
        self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def on_train_start(self, trainer: pl.Trainer, task: Task) -> None:
        # Lightning has put its own SIGTERM handler around ours by now, which would end the fit without a checkpoint.
        for number in SIGNALS:
            signal.signal(number, self._receive)
        trainer._signal_connector.received_sigterm = False  # ours has seen it as well

    def on_train_batch_end(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        stop = self.received is not None
        if trainer.world_size > 1:
            if not task.stepped or task.step % self.agree_every_steps:
                return
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop and task.stepped:
            self.received = self.received or signal.SIGTERM
            trainer.should_stop = True

    def teardown(self, trainer: pl.Trainer, task: Task, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _receive(self, number: int, frame: Any) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number
