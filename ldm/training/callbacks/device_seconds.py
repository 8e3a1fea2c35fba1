"""What the training itself has cost: seconds of the device, which a busy machine does not stretch on CPU cores."""

from typing import Any

import pytorch_lightning as pl

from ldm.device import device_clock
from ldm.errors import UserError
from ldm.training.task import Task

NAME = "speed/device_seconds"


class DeviceSeconds(pl.Callback):
    """Log ``speed/device_seconds`` every `every_steps` steps and at the last: steps alone, along all resumes.

    On CPU cores they are the seconds that this process computed, over all its threads; on a GPU those that passed;
    times the number of ranks. Validation, panels, checkpoints and waiting for data are left out. A GPU is waited for
    at every step, so that it does none of its work unseen.
    """

    comes_first = True  # the other callbacks' work after a step is not the training's

    def __init__(self, every_steps: int = 50):
        if every_steps < 1:
            raise UserError(f"callback.device_seconds.every_steps={every_steps}: must be at least 1")
        self.every_steps = every_steps
        self.seconds = 0.0
        self._began = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        self._began = device_clock(task.device)

    def on_train_batch_end(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        written = task.stepped and (task.step % self.every_steps == 0 or task.step >= task.max_steps)
        self.seconds += (device_clock(task.device) - self._began) * trainer.world_size
        if written:
            for logger in trainer.loggers:
                logger.log_metrics({NAME: self.seconds}, step=task.step)

    def state_dict(self) -> dict[str, Any]:
        """The seconds so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]
