"""Data workers: signals of others leave them alone, one that hangs or dies is named."""

import multiprocessing
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset

from data.errors import SkipLog
from data.module import Batches
from data.workers import WorkerError, failures_named, leave_signals_to_parent

FORK, SPAWN = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")


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


@pytest.mark.parametrize("number", [signal.SIGSTOP])  # SIGKILL: scripts/chaos.py restarts; here torch's handler hangs
def test_a_worker_that_is_stopped_or_killed_is_named(number: int):
    said, says = SPAWN.Pipe(duplex=False)
    # in a process of its own: torch raises for a killed worker wherever its process is just then, in pytest too
    process = SPAWN.Process(target=_lose_a_worker, args=(number, says))
    process.start()
    says.close()  # so that a process that dies without a word is an EOFError here
    victim, message = said.recv()
    process.join(60)
    assert re.search(
        f"process {victim} is stopped" if number == signal.SIGSTOP else rf"\(pid.* {victim}\)|worker died", message
    )


def _lose_a_worker(number: int, says: Connection) -> None:
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
    says.send((victim, message))
    os._exit(0)


def test_signals_of_others_do_not_end_a_worker_and_its_parent_does():
    process = FORK.Process(target=_wait, daemon=True)
    process.start()
    time.sleep(0.5)
    for name in ("TERM", "INT", "USR1"):
        subprocess.run(["kill", f"-{name}", str(process.pid)], check=True)
    time.sleep(0.5)
    assert process.is_alive()
    process.terminate()
    process.join(10)
    assert process.exitcode == 0


def _wait() -> None:
    leave_signals_to_parent(0)
    time.sleep(600)
