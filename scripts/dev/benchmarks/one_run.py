"""Runs of train.py in this process, up to a step: CPU and wall seconds until a run has done its first one."""

import contextlib
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.overhead import COMMON
from ldm.config import overriding

TOY = [*COMMON, "~logger", "network.width=8", "network.depth=1", "network.num_heads=1", "optimizer.lr=1e-4"]


class _Stepped(Exception):
    """A run has done a step, and ends as one that fails: nothing is saved."""


def stopped_at(folder: Path, step: int, *more: str) -> list[str]:
    """Train a toy to `step`; the command that goes on from there. The run is `folder`/at-`step`."""
    import train

    words = overriding([*TOY, f"runs_dir={folder}", f"run=at-{step}", *more])
    with contextlib.redirect_stdout(io.StringIO()):
        assert train.main(overriding([*words, f"max_steps={step}"])) == 0
    return words


def first_step(words: Sequence[str]) -> tuple[float, float]:
    """CPU seconds of the process, and wall seconds, until a run has done a step; nothing of it is saved."""
    import train
    from ldm.training.task import Task

    step = Task.optimizer_step

    def stepped(self: Task, *arguments: Any, **named: Any) -> None:
        step(self, *arguments, **named)
        raise _Stepped(time.process_time() - cpu, time.monotonic() - wall)

    cpu, wall = time.process_time(), time.monotonic()
    with patch.object(Task, "optimizer_step", stepped), contextlib.redirect_stdout(io.StringIO()):
        try:
            train.main([*words])
        except _Stepped as done:
            return done.args
    raise AssertionError("the run ended before a step")


def resumed(words: Sequence[str]) -> float:
    """CPU seconds from the command of `stopped_at` to the end of the first step after the checkpoint."""
    return first_step(words)[0]
