"""Pictures to look at while it trains: what the task draws of a few held-out samples."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ldm.images import save_image
from ldm.training.loggers import log_picture
from ldm.training.task import Task


class Panels(pl.Callback):
    """Every `every_steps` steps and at the end: ``samples/step_<n>_<name>.png`` of `num_images` held-out samples."""

    def __init__(self, folder: Path, every_steps: int = 1000, num_images: int = 8):
        self.folder = folder
        self.every_steps = every_steps
        self.num_images = num_images

    def on_train_batch_end(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        if task.stepped and (task.step % self.every_steps == 0 or task.step == task.max_steps):
            self.draw(trainer, task)

    def draw(self, trainer: pl.Trainer, task: Task) -> None:
        """Draw on rank zero only; the other ranks go on."""
        data = trainer.datamodule
        if not trainer.is_global_zero or not data.num_validation:
            return
        batch = next(iter(data.validation_loader(0, 1, self.num_images)))
        with task.averaged():
            panels = task.panels(trainer.strategy.batch_to_device(batch))
        for name, picture in panels.items():
            path = self.folder / "samples" / f"step_{task.step:08d}_{name}.png"
            log_picture(trainer.loggers, f"panels/{name}", save_image(path, picture), task.step)
