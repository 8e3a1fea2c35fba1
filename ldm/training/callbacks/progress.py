"""One line that says how far, how fast and how long yet; on a terminal a bar, in a log file a line now and then."""

import time
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ldm.training.task import Task

# Of what was logged last, what the line shows where there is such a value.
SHOWN = {
    "train/loss": "loss {:.4f}",
    "speed/data_share": "waits for data {:.0%}",
    "speed/mfu": "MFU {:.0%}",
    "speed/memory_gib": "{:.1f} GiB",
}


class ProgressLine(pl.Callback):
    """Steps done, samples/s, time left and the latest of what `SHOWN` names, on rank zero."""

    def __init__(self, run_name: str, log_every_seconds: float = 30.0):
        self.run_name = run_name
        self.log_every_seconds = log_every_seconds
        self.console = Console()
        self._progress: Progress | None = None
        self._last = 0.0

    def on_train_start(self, trainer: pl.Trainer, task: Task) -> None:
        if not trainer.is_global_zero:
            return
        self._begin = (time.monotonic(), task.step)
        self._last = time.monotonic()
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"), BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[text]}"), TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(),
                console=self.console, refresh_per_second=2,
            )  # fmt: skip
            self._bar = self._progress.add_task(self.run_name, total=task.max_steps, completed=task.step, text="")
            self._progress.start()

    def on_train_batch_end(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        if not trainer.is_global_zero or not task.stepped:
            return
        now = time.monotonic()
        if self._progress:
            self._progress.update(self._bar, completed=task.step, text=self._text(trainer, task, now))
        elif now - self._last > self.log_every_seconds or task.step == task.max_steps:
            self._last = now
            left = (task.max_steps - task.step) * (now - self._begin[0]) / max(task.step - self._begin[1], 1)
            eta = f"{left / 60:.1f} min left"
            self.console.print(
                f"{self.run_name}  {task.step}/{task.max_steps}  {self._text(trainer, task, now)}  {eta}",
                soft_wrap=True,
            )

    def on_train_end(self, trainer: pl.Trainer, task: Task) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, task: Task, exception: BaseException) -> None:
        self._stop()

    def _text(self, trainer: pl.Trainer, task: Task, now: float) -> str:
        rate = (task.step - self._begin[1]) * trainer.datamodule.batch_size / max(now - self._begin[0], 1e-9)  # type: ignore[attr-defined]  # Lightning sets it
        shown = [text.format(task.latest[name]) for name, text in SHOWN.items() if name in task.latest]
        return "  ".join([f"{rate:.1f} samples/s", *shown])

    def _stop(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None
