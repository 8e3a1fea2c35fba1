"""Held-out losses of the averaged weights, every few steps, with the same draws each time."""

from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from ldm.training.distributed import in_step, means_over_ranks
from ldm.training.task import Task


class Validation(pl.Callback):
    """Log ``validation/<name>`` over the held-out samples every `every_steps` steps and at the end."""

    def __init__(self, every_steps: int = 1000, batch_size: int = 64):
        self.every_steps = every_steps
        self.batch_size = batch_size
        self.validated_step = -1

    def on_train_batch_end(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        if task.stepped and task.step % self.every_steps == 0:
            self.validate(trainer, task)

    def on_train_end(self, trainer: pl.Trainer, task: Task) -> None:
        if task.step >= task.max_steps:
            self.validate(trainer, task)

    def validate(self, trainer: pl.Trainer, task: Task) -> None:
        """One pass over this rank's share of the held-out samples."""
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
        if task.step == self.validated_step or not data.num_validation:
            return
        self.validated_step = task.step
        sums: dict[str, Tensor] = {}
        count = 0
        with task.averaged():
            loader = data.validation_loader(trainer.global_rank, trainer.world_size, self.batch_size, images=False)
            one = data.validation_loader(0, 1, 1, images=False)
            for batch, counts in in_step(loader, one, task.device):
                values = task.validate(trainer.strategy.batch_to_device(batch))
                values = {name: value.double().sum() * counts for name, value in values.items()}
                sums = {name: sums.get(name, 0) + value for name, value in values.items()}
                count += len(batch["key"]) * counts
        task.validated, task.validated_step = means_over_ranks(sums, count), task.step
        for logger in trainer.loggers:
            logger.log_metrics({f"validation/{name}": value for name, value in task.validated.items()}, step=task.step)
