"""Data workers: signals of others leave them alone, one that hangs or dies is named."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset

from ldm.data.batches import Batches
from ldm.data.errors import SkipLog
from ldm.data.workers import WorkerError, failures_named, leave_signals_to_parent, sigterm_held

FORK = multiprocessing.get_context("fork")
ROOT = str(Path(__file__).resolve().parents[1])


class Numbers(IterableDataset):
    """Batches that carry the worker's process; worker 1 does not come to its batch number `last`."""

    def __init__(self, last: int = 1000):
        self.last = last

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info().id
        for number in range(1000):
            if worker == 1 and number == self.last:
                time.sleep(600)
            yield {"skipped": [], "worker": worker, "pid": os.getpid(), "image": torch.zeros(2)}


def batches(stream: Numbers, timeout_seconds: float = 60.0) -> Iterator[dict[str, Any]]:
    return iter(Batches(stream, 2, SkipLog(1, 0.0), timeout_seconds))


def test_a_worker_that_hangs_is_named_in_time():
    began, taken = time.monotonic(), []
    with pytest.raises(WorkerError, match=r"no batch of data worker 1 in 2 s \(data\.timeout_seconds\)"):
        for batch in batches(Numbers(last=3), 2.0):
            taken.append(batch["worker"])
    assert taken == [0, 1] * 3 + [0] and time.monotonic() - began < 12


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_worker_that_is_stopped_or_killed_is_named(number: int):
    # in a process of its own: torch raises for a killed worker wherever its process is just then, in pytest too
    command = [sys.executable, __file__, str(int(number))]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": ROOT})
    assert found.returncode == 0, found.stderr
    victim, message = found.stdout.split(" ", 1)
    expected = f"process {victim} is stopped" if number == signal.SIGSTOP else rf"\(pid.* {victim}\)|worker died"
    assert re.search(expected, message)


def _lose_a_worker(number: int) -> None:
    """Print a data worker's process, and the error that comes of the signal it is sent."""
    victim, message = 0, "no error"
    try:
        with failures_named():
            stream = batches(Numbers(), 2.0)
            victim = next(stream)["pid"]
            os.kill(victim, number)
            for _ in stream:
                pass
    except WorkerError as error:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise once more for each worker that ends
        message = str(error)
    print(victim, message, flush=True)
    os._exit(0)


def _as_libraries_do() -> None:
    """Some start a thread in each forked process, before any of our code runs there."""
    if BUSY:
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


BUSY: list[bool] = []
os.register_at_fork(after_in_child=_as_libraries_do)


@pytest.mark.parametrize("busy", [False, True])
def test_signals_of_others_do_not_end_a_worker_and_its_parent_does(busy: bool):
    ready = FORK.Event()
    BUSY[:] = [True] * busy
    try:
        with sigterm_held():
            process = FORK.Process(target=_wait, args=(ready,), daemon=True)
            process.start()
    finally:
        BUSY.clear()
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert ready.wait(60)
    for name in ("TERM", "INT", "USR1"):
        subprocess.run(["kill", f"-{name}", str(process.pid)], check=True)
    time.sleep(0.5)
    assert process.is_alive()
    process.terminate()
    process.join(10)
    assert process.exitcode == 0


def _wait(ready: Any) -> None:
    leave_signals_to_parent(0)
    ready.set()
    time.sleep(600)


if __name__ == "__main__":
    _lose_a_worker(int(sys.argv[1]))


def test_shared_memory_that_is_too_small_is_said_before_a_batch_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from test_data_module import NUM, make, sample, take, write

    data = make(write(tmp_path, [sample(i) for i in range(NUM)]), validation=f"{tmp_path}/train-0.tar", num_workers=2)
    needed = 12 * 3 * 8 * 8 * 4 * 2 * 2  # a batch's images, of each worker, two ahead

    def room(free: int) -> None:
        monkeypatch.setattr(
            "ldm.data.workers.os.statvfs", lambda _: os.statvfs_result((1, 1, free, free, free, *[0] * 5))
        )

    room(needed - 1)
    for ask in (data.train_loader, data.validation_loader, data.statistics_loader):
        with pytest.raises(WorkerError, match=r"shared memory .* of 2 workers.*--shm-size=8g .*data\.num_workers=0"):
            ask(batch_size=12) if ask != data.train_loader else ask()
    room(needed)
    assert len(take(data, 1)) == 1
    room(0)
    data.num_workers = 0
    assert len(take(data, 1)) == 1
