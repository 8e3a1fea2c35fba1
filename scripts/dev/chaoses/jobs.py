"""Real training processes for fault injection, forked from this one, which has imported all: a trial takes seconds.

`Job` is one run of ``train.py``, with as many ranks as asked for, as torchrun would start them.
"""

import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

import train
from ldm.checkpoint import resume
from ldm.config import guarded, overriding
from ldm.training.task import Task

PATIENCE_SECONDS = 120  # for anything that a toy does
FORK = multiprocessing.get_context("fork")


def nothing() -> None:
    """The preparation of a process without an injected fault."""


class Job:
    """``train.py`` with these `arguments` in `ranks` processes; `prepare` is called in each before it begins."""

    def __init__(
        self,
        arguments: list[str],
        output: Path,
        ranks: int = 1,
        prepare: Callable[[], None] = nothing,
        environment: dict[str, str] | None = None,
    ):
        self.output = output
        output.write_text("")
        if ranks > 1:
            strategy = (
                [] if any(word.startswith("trainer.strategy=") for word in arguments) else ["trainer.strategy=ddp"]
            )
            arguments = overriding([*arguments, f"trainer.devices={ranks}", *strategy])
        port = free_port()
        self.processes = []
        for rank in range(ranks):
            own = {**(environment or {}), **(_as_torchrun(rank, ranks, port) if ranks > 1 else {})}
            process = FORK.Process(target=_train, args=(arguments, output, own, prepare))
            process.start()
            self.processes.append(process)

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def signal(self, number: int, rank: int | None = None, group: bool = False) -> None:
        """Send a signal to one rank or to all, or to their data workers as well."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            with suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(process.pid, number)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> list[int]:
        """The exit status of each rank; those that are still there after so long are killed, and give -9."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(deadline - time.monotonic(), 0))
        self.signal(signal.SIGKILL, group=True)
        for process in self.processes:
            process.join()
        return [process.exitcode for process in self.processes]

    def wait_until(self, condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> bool:
        """Whether `condition` came true while the job was running."""
        deadline = time.monotonic() + seconds
        while not condition():
            if not self.running or time.monotonic() > deadline:
                return False
            time.sleep(0.003)
        return True


def _as_torchrun(rank: int, ranks: int, port: int) -> dict[str, str]:
    facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": 0}
    return {
        **{name: str(value) for name, value in facts.items()},
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "chaos",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _train(arguments: list[str], output: Path, environment: dict[str, str], prepare: Callable[[], None]) -> None:
    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    logging.getLogger("ldm").setLevel(logging.NOTSET)
    torch.set_num_threads(1)
    prepare()
    sys.argv = ["train.py", *arguments]
    guarded(train.main)


def descendants(pid: int) -> list[int]:
    """Children, and theirs, of a process."""
    return [found for child in children(pid) for found in (*descendants(child), child)]


def children(pid: int) -> list[int]:
    """Processes that a process has started and that are still there."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def write_down_keys(folder: Path) -> None:
    """In a job: let each rank record which samples each micro-batch of each step had."""
    folder.mkdir(exist_ok=True)
    original = Task.on_train_batch_start

    def watch(task: Task, batch: dict, batch_index: int) -> None:
        part = batch_index % task.trainer.accumulate_grad_batches
        with (folder / f"rank{task.global_rank}.txt").open("a") as file:
            file.write("\n" + json.dumps([task.step, part, batch["key"]]))  # ends a line that a kill cut off
        original(task, batch, batch_index)

    Task.on_train_batch_start = watch


def keys(folder: Path) -> dict[tuple[int, int, int], set[tuple[str, ...]]]:
    """(step, micro-batch, rank) -> the samples it had, each time it was done."""
    found: dict[tuple[int, int, int], set[tuple[str, ...]]] = {}
    for file in folder.glob("rank*.txt"):
        for step, part, names in _noted(file):
            found.setdefault((step, part, int(file.stem[4:])), set()).add(tuple(names))
    return found


def last_step(folder: Path) -> int:
    """The last step that rank zero began, by its records; -1 before the first."""
    rows = _noted(folder / "rank0.txt")
    return rows[-1][0] if rows else -1


def _noted(file: Path) -> list[tuple[int, int, list[str]]]:
    """The records of one rank, without one that is incomplete: its micro-batch is repeated."""
    rows = []
    for line in file.read_text().splitlines() if file.exists() else ():
        with suppress(ValueError):
            rows.append(tuple(json.loads(line)))
    return rows


def whole_step(run: Path) -> int:
    """The step of a run's newest whole checkpoint; 0 if there is none."""
    found = resume.newest(run / "checkpoints")
    return int(resume.PATTERN.fullmatch(found.name)[1]) if found else 0


def leftovers(run: Path) -> list[str]:
    """What interrupted writes left in a run's folder."""
    return sorted(str(path.relative_to(run)) for path in run.rglob(".*") if path.name.startswith(".writing-"))
