"""Pictures to look at while it trains: what the task draws of a few held-out samples, and curves it has learned."""

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ldm.charts import save_curve
from ldm.images import save_image
from ldm.training.loggers import log_picture
from ldm.training.task import Task

log = logging.getLogger(__name__)


class Panels(pl.Callback):
    """Every `every_steps` steps and at the end: ``samples/step_<n>_<name>.png`` of `num_images` held-out samples.

    Curves over the noise, where the task learns one, come beside them as PNG and CSV.
    """

    def __init__(self, folder: Path, every_steps: int = 1000, num_images: int = 8):
        self.folder = folder
        self.every_steps = every_steps
        self.num_images = num_images

    def on_train_batch_end(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        if task.stepped and (task.step % self.every_steps == 0 or task.step == task.max_steps):
            self.draw(trainer, task)

    def draw(self, trainer: pl.Trainer, task: Task) -> None:
        """Draw on rank zero; the other ranks go on, or compute along where weights are sharded."""
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
        if not (trainer.is_global_zero or task.sharded):
            return
        panels, captions = {}, None
        if data.num_validation:
            batch = next(iter(data.validation_loader(0, 1, self.num_images)))
            captions = " | ".join(batch.get("caption", [])) or None
            with task.averaged():
                panels = task.panels(trainer.strategy.batch_to_device(batch))
        found = task.curves()
        if not trainer.is_global_zero:
            return
        for name, picture in panels.items():
            if not picture.isfinite().all():
                log.warning("step %d: %s are not finite; in the picture they are grey", task.step, name)
        pictures = {name: save_image(self._path(task, name), p.nan_to_num(0.0)) for name, p in panels.items()}
        curves = {name: save_curve(self._path(task, name), curve) for name, curve in found.items()}
        for name, path in {**pictures, **curves}.items():
            log_picture(trainer.loggers, f"panels/{name}", path, task.step, captions if name in pictures else None)

    def _path(self, task: Task, name: str) -> Path:
        return self.folder / "samples" / f"step_{task.step:08d}_{name}.png"
