"""Means of the task's logged values, rates and learning rate, every few steps, without a host sync in between."""

import logging
import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.training.distributed import all_reduce_sum, gather, share
from ldm.training.task import Task

log = logging.getLogger(__name__)


class Metrics(pl.Callback):
    """Log means over the last `every_steps` steps, of the values in `task.logs` that are finite.

    `max_skipped_steps` steps in a row that were skipped end the run with a clear message. Raises UserError for a value
    that is put into `task.logs` after this callback has taken the others, which would be lost.
    """

    def __init__(self, every_steps: int = 50, max_skipped_steps: int = 20):
        self.every_steps = every_steps
        self.max_skipped_steps = max_skipped_steps
        # names logged together -> their sums and how many values went into each, [2, names]
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._steps = 0  # since `_since`, for the rate: those before a resume took other time
        self._since = 0.0
        self._warned_at = 0
        self._taken: tuple[str, ...] | None = None  # names in the logs of the last micro-batch, when they were taken

    def on_train_start(self, trainer: pl.Trainer, task: Task) -> None:
        self._since = time.monotonic()
        self._sums = {names: value.to(task.device) for names, value in self._sums.items()}

    def on_train_batch_start(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        self._check_all_taken(task)

    def on_train_end(self, trainer: pl.Trainer, task: Task) -> None:
        self._check_all_taken(task)

    def _check_all_taken(self, task: Task) -> None:
        late = [] if self._taken is None else [name for name in task.logs if name not in self._taken]
        if late:
            raise UserError(
                f"task.logs[{late[0]!r}]: was put there after callback.metrics had taken what is logged of the step; a "
                "callback that logs in on_train_batch_end says comes_first = True in its class, or stands before "
                "metrics in callback=[...]"
            )

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        self._taken = tuple(task.logs)
        if task.logs:
            names = self._taken
            values = torch.stack([value.detach().float() for value in task.logs.values()])
            finite = values.isfinite()
            added = torch.stack([values.where(finite, torch.zeros_like(values)), finite.float()])
            self._sums[names] = self._sums[names] + added if names in self._sums else added
        if task.stepped:
            self._steps += 1
            if task.step % self.every_steps == 0 or task.step == task.max_steps:
                self._write(trainer, task)

    def state_dict(self) -> dict[str, Any]:
        """The sums of the next mean so far, of each rank (all call this together): another order rounds differently."""
        sums = {"\n".join(names): torch.stack(gather(value)) for names, value in self._sums.items()}
        return {"sums": sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sums = {tuple(names.split("\n")): share(value) for names, value in state_dict["sums"].items()}

    def _write(self, trainer: pl.Trainer, task: Task) -> None:
        means = self._means()
        now = time.monotonic()
        batch_size = trainer.datamodule.batch_size  # type: ignore[attr-defined]  # Lightning sets it
        skipped, in_row = task.guard.counts()
        task.latest = {
            **{f"train/{name}": value for name, value in means.items()},
            "train/skipped_steps": skipped,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "samples": task.step * batch_size,
            "samples_per_second": self._steps * batch_size / max(now - self._since, 1e-9),
        }
        for logger in trainer.loggers:
            logger.log_metrics(task.latest, step=task.step)
        self._sums, self._steps, self._since = {}, 0, now
        if skipped > self._warned_at:
            self._warned_at = 2 * skipped
            log.warning(
                "step %d: %d steps so far were skipped, their gradients %s", task.step, skipped, task.guard.reason
            )
        if in_row >= self.max_skipped_steps:
            raise UserError(
                f"step {task.step}: the gradients of {in_row} steps in a row were {task.guard.reason}; "
                "those steps changed nothing and the last checkpoint is intact. Lower optimizer.lr, set "
                "trainer.gradient_clip_val, or look at the data"
            )

    def _means(self) -> dict[str, float]:
        """name -> mean over ranks and steps; NaN where no value was finite."""
        totals: dict[str, Tensor] = {}
        for names, sums in self._sums.items():
            for name, pair in zip(names, all_reduce_sum(sums).double().cpu().unbind(1), strict=True):
                totals[name] = totals.get(name, 0) + pair
        return {name: (total / count).item() for name, (total, count) in totals.items()}
