"""A run that hangs is ended and names where each rank hangs, instead of holding its devices until someone looks.

A thread of each rank writes what its rank does to a small file in the run's folder, which all ranks see, and reads the
others'. A process that is stopped, or whose machine is gone, is known by a file that does not change any more.
"""

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ldm.errors import UserError
from ldm.training.task import Task

EXIT_STATUS = 4
ROOT = Path(__file__).parents[3]
# What a rank waits for, by where in torch or Lightning its main thread is; the innermost match counts.
PLACES = (
    ("torch/utils/data", "waits for its data workers"),
    ("torch/distributed", "waits for the other ranks"),
    ("torch/nn/parallel", "waits for the other ranks"),
    ("torch/autograd", "is in backward, where gradients wait for the other ranks"),
)


class Watchdog(pl.Callback):
    """End the process if no micro-batch has begun or ended for `timeout_seconds`, naming what each rank does.

    Validation, panels and saving between two micro-batches count too: the timeout has to exceed them. What works in
    small parts says `alive` after each.
    """

    def __init__(self, folder: Path, timeout_seconds: float = 1800.0):
        if timeout_seconds <= 0:
            raise UserError(f"callback.watchdog.timeout_seconds={timeout_seconds}: must be positive")
        self.folder = folder / "ranks"
        self.timeout_seconds = timeout_seconds
        self._done = threading.Event()
        self._moved = 0.0  # when this rank last did something
        self._step = 0
        self._rank = 0
        self._thread: threading.Thread | None = None

    def on_train_start(self, trainer: pl.Trainer, task: Task) -> None:
        self._step, self._moved = task.step, time.monotonic()
        self._done.clear()
        self._rank = trainer.global_rank
        watched = (threading.get_ident(), trainer.world_size)
        self._thread = threading.Thread(target=self._watch, args=watched, name="watchdog", daemon=True)
        self._thread.start()

    def on_train_batch_start(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        self._step, self._moved = task.step, time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        self._step, self._moved = task.step, time.monotonic()

    def alive(self) -> None:
        """This rank has done something between two micro-batches."""
        self._moved = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, task: Task) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, task: Task, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        self._done.set()
        if self._thread:
            self._thread.join()
            self._thread = None
            with contextlib.suppress(OSError):  # the last rank to end removes the folder
                (self.folder / str(self._rank)).unlink()
                self.folder.rmdir()

    def _watch(self, main_thread: int, world_size: int) -> None:
        """Beat ten times within the timeout; give up when it is over."""
        interval = min(self.timeout_seconds / 10, 10.0)
        heard: dict[int, tuple[str, float]] = {}  # of each rank: its last beat, and when that came
        beat, now = 0, time.monotonic()
        while not self._done.wait(interval):
            beat, before, now = beat + 1, now, time.monotonic()
            if now - before > 3 * interval + 10:  # this process itself was stopped, and has been continued
                self._moved = now
            self._write(f"{beat} {self._step} {_place(main_thread)}")
            for other in range(world_size):
                said = self._read(other)
                if heard.get(other, ("", 0.0))[0] != said:
                    heard[other] = (said, now)
            if now - self._moved > self.timeout_seconds:
                self._give_up(world_size, heard, silent_after=max(3 * interval, self.timeout_seconds / 2))

    def _give_up(self, world_size: int, heard: dict[int, tuple[str, float]], silent_after: float) -> None:
        lines = [f"rank {self._rank}: no step for {self.timeout_seconds:g} s (callback.watchdog.timeout_seconds)"]
        for other in range(world_size):
            said, since = heard.get(other, ("", 0.0))
            silence = time.monotonic() - since
            _, step, place = (said or "0 0 ?").split(" ", 2)
            silent = f"has not been heard of for {silence:.0f} s: stopped, or its machine is gone; before that it "
            lines.append(f"  rank {other}, step {step}: {silent if silence > silent_after else ''}{place}")
        print("\n".join(lines), file=sys.stderr, flush=True)
        os._exit(EXIT_STATUS)  # the main thread may be waiting in a call that cannot be interrupted

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # saving a checkpoint reports a full disk
            self.folder.mkdir(exist_ok=True)
            temporary = self.folder / f".{self._rank}"
            temporary.write_text(text)
            temporary.replace(self.folder / str(self._rank))

    def _read(self, rank: int) -> str:
        with contextlib.suppress(OSError):
            return (self.folder / str(rank)).read_text()
        return ""


def _place(thread: int) -> str:
    """What a thread is doing, from its stack: a known kind of wait, if any, and the innermost line of this project."""
    frame, wait, ours = sys._current_frames().get(thread), "", ""
    while frame is not None and not ours:
        path = frame.f_code.co_filename
        wait = wait or next((text for part, text in PLACES if part in path), "")
        if path.startswith(f"{ROOT}/ldm/"):
            ours = f"{path.removeprefix(f'{ROOT}/')}:{frame.f_lineno}"
        frame = frame.f_back
    return " ".join(filter(None, [wait or "works", f"({ours})" if ours else ""]))
