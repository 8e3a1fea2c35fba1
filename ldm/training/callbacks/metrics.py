"""Means of the task's logged values, rates and learning rate, every few steps, without a host sync in between."""

import math
import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm.training.distributed import mean_over_ranks, means_over_ranks
from ldm.training.task import Task


class Metrics(pl.Callback):
    """Log means over the last `every_steps` steps. A loss that is not finite ends the run with a clear message."""

    def __init__(self, every_steps: int = 50):
        self.every_steps = every_steps
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._since = 0.0

    def on_train_start(self, trainer: pl.Trainer, task: Task) -> None:
        self._since = time.monotonic()
        self._sums = {name: value.to(task.device) for name, value in self._sums.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        if self._sums.keys() == task.logs.keys():
            torch._foreach_add_(list(self._sums.values()), [task.logs[name].float() for name in self._sums])
        else:
            self._sums = {name: value.detach().float().clone() for name, value in task.logs.items()}
            self._count = 0
        self._count += 1
        if task.stepped and (task.step % self.every_steps == 0 or task.step == task.max_steps):
            self._write(trainer, task)

    def state_dict(self) -> dict[str, Any]:
        """What the next mean has so far, the same on all ranks (which call this together)."""
        return {"sums": {name: mean_over_ranks(value) for name, value in self._sums.items()}, "count": self._count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sums, self._count = dict(state_dict["sums"]), state_dict["count"]

    def _write(self, trainer: pl.Trainer, task: Task) -> None:
        means = means_over_ranks(self._sums, self._count)
        now = time.monotonic()
        batch_size = trainer.datamodule.batch_size
        steps = self._count / trainer.accumulate_grad_batches
        task.latest = {
            **{f"train/{name}": value for name, value in means.items()},
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "samples": task.step * batch_size,
            "samples_per_second": steps * batch_size / max(now - self._since, 1e-9),
        }
        for logger in trainer.loggers:
            logger.log_metrics(task.latest, step=task.step)
        self._sums, self._count, self._since = {}, 0, now
        if not all(math.isfinite(value) for value in means.values()):
            wrong = [name for name, value in means.items() if not math.isfinite(value)]
            raise ValueError(f"step {task.step}: {', '.join(wrong)} is not finite; the last checkpoint is intact")
