"""SIGINT, SIGTERM and SIGUSR1 save and stop: a handler sets a flag, all ranks agree on it at the end of a step."""

import logging
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ldm.errors import UserError
from ldm.files import write_text
from ldm.training.distributed import max_over_ranks
from ldm.training.task import Task

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
MARKER = "requeue"  # in a run's folder: it was stopped from outside before its end, the same command should be run


class StopOnSignal(pl.Callback):
    """The first signal stops at the next step, which is then saved; a second SIGINT stops at once.

    With several ranks the signal is shared every `agree_every_steps` steps. SIGTERM and SIGUSR1 leave the file
    ``requeue`` in the run's `folder`. Under SLURM (``sbatch --signal=USR1@90``) SIGUSR1 also puts the job back into the
    queue, unless `requeue` is false; SIGTERM does not, because that is how a job is cancelled. The caller of fit
    restores the handlers: `handlers_kept`.
    """

    def __init__(self, folder: Path, agree_every_steps: int = 10, requeue: bool = True):
        if agree_every_steps < 1:
            raise UserError(f"callback.signals.agree_every_steps={agree_every_steps}: must be at least 1")
        self.folder = folder
        self.agree_every_steps = agree_every_steps
        self.requeue = requeue
        self.received = 0

    def on_fit_start(self, trainer: pl.Trainer, task: Task) -> None:
        self._take_over()
        if trainer.is_global_zero:
            (self.folder / MARKER).unlink(missing_ok=True)

    def on_train_start(self, trainer: pl.Trainer, task: Task) -> None:
        # Lightning has put its own SIGTERM handler around ours by now, which would end the fit without a checkpoint.
        self._take_over()
        trainer._signal_connector.received_sigterm = False  # ours has seen it as well

    def on_train_batch_end(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        if not task.stepped:
            return
        if trainer.world_size > 1:
            if task.step % self.agree_every_steps:
                return
            self.received = max_over_ranks(self.received, trainer.strategy.root_device)
        if self.received:
            trainer.should_stop = True

    def on_fit_end(self, trainer: pl.Trainer, task: Task) -> None:
        if not trainer.is_global_zero or task.step >= task.max_steps:
            return
        if self.received in (signal.SIGTERM, signal.SIGUSR1):
            name = signal.Signals(self.received).name
            write_text(self.folder / MARKER, f"{name} at step {task.step} of {task.max_steps}\n")
        if self.received == signal.SIGUSR1 and self.requeue and "SLURM_JOB_ID" in os.environ:
            requeue_slurm_job()

    def _take_over(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = max(self.received, number)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Restore the previous signal handlers at the end, also after an error, when no callback is called to clean up
    and Lightning restores the handlers it found, which were the callback's.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def requeue_slurm_job() -> None:
    """Put this SLURM job, or this task of an array, back into the queue; what went wrong is only warned of."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("scontrol requeue %s: %s; start the same command again yourself", job, error)
