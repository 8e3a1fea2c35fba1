"""How fast a run is and where its time goes: split of the step, memory, model FLOPs utilisation."""

import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ldm.errors import UserError
from ldm.training import flops
from ldm.training.distributed import mean_over_ranks
from ldm.training.task import PHASES, Task


class Speed(pl.Callback):
    """Every `every_steps` steps and at the end, means over ranks since the last time, as ``speed/...``:

    milliseconds of a step in each phase (`task.PHASES`), the share of the time spent waiting for data, and memory in
    GiB: on a GPU the most that tensors had, on a CPU what the process has resident. On GPUs whose peak is known, also
    TFLOP/s of each and their share of it (MFU), from one micro-batch counted before the first step.
    """

    def __init__(self, every_steps: int = 50):
        if every_steps < 1:
            raise UserError(f"callback.speed.every_steps={every_steps}: must be at least 1")
        self.every_steps = every_steps
        self._micro_batch_flop: int | None = None
        self._peak: float | None = None
        self._steps = 0
        self._since = 0.0

    def on_train_start(self, trainer: pl.Trainer, task: Task) -> None:
        self._peak = flops.peak(task.device, trainer.precision)
        self._steps, self._since = 0, time.monotonic()

    def on_train_batch_start(self, trainer: pl.Trainer, task: Task, batch: dict[str, Any], batch_index: int) -> None:
        if self._peak and self._micro_batch_flop is None:
            self._micro_batch_flop = flops.count(task, batch)
            task.stopwatch.start(task.device)
            self._since = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        if task.stepped:
            self._steps += 1
            if task.step % self.every_steps == 0 or task.step == task.max_steps:
                self._write(trainer, task)

    def _write(self, trainer: pl.Trainer, task: Task) -> None:
        spent = task.stopwatch.read()
        seconds = [spent.get(phase, 0.0) for phase in PHASES]
        own = torch.tensor([*seconds, memory_gib(task.device)], device=task.device)
        *seconds, memory = mean_over_ranks(own).tolist()
        now = time.monotonic()
        values = {f"speed/{phase}_ms": 1e3 * s / self._steps for phase, s in zip(PHASES, seconds, strict=True)}
        values["speed/data_share"] = seconds[0] / max(sum(seconds), 1e-9)
        values["speed/memory_gib"] = memory
        if self._peak:
            rate = self._micro_batch_flop * trainer.accumulate_grad_batches * self._steps / (now - self._since)
            values |= {"speed/tflops": rate / 1e12, "speed/mfu": rate / self._peak}
        self._steps, self._since = 0, now
        task.latest |= values
        for logger in trainer.loggers:
            logger.log_metrics(values, step=task.step)


def memory_gib(device: torch.device) -> float:
    """Memory, GiB: a GPU's peak of allocated tensors so far, else this process's resident set (0 if unknown)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/statm")
    if not status.exists():
        return 0.0
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30
