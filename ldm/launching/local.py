"""Jobs on this machine, one after the other; whoever stops the sweep stops the jobs that train."""

import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ldm.installed import train_command
from ldm.launching import Job


class _Running:
    """The processes of this one that are at work, and the signals that were passed on to them."""

    def __init__(self) -> None:
        self.processes: set[subprocess.Popen] = set()
        self.asked: list[int] = []

    def pass_on(self, number: int, frame: Any) -> None:
        self.asked.append(number)
        for process in tuple(self.processes):
            process.send_signal(number)


_running = _Running()


def launch(jobs: Sequence[Job]) -> list[int]:
    """Each job in a fresh process, which starts those of its further devices itself."""
    statuses = []
    for number, job in enumerate(jobs, start=1):
        print(f"[{number}/{len(jobs)}] {job.name}", flush=True)
        statuses.append(run(job.command()))
    return statuses


@contextmanager
def passing_on() -> Iterator[None]:
    """Within it SIGTERM is passed on to all that `run` has started, in whatever thread. For the main thread."""
    before = signal.signal(signal.SIGTERM, _running.pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _running.asked.clear()


def stop() -> None:
    """As if SIGTERM had come, for what waits within `passing_on`; Ctrl-C reaches the main thread alone."""
    _running.asked.append(signal.SIGTERM)


def is_stopping() -> bool:
    """Whether SIGTERM has come within `passing_on`: launchers start nothing more, and wait for nothing that goes on."""
    return bool(_running.asked)


def run(command: Sequence[str]) -> int:
    """The exit status of a command, once it has saved its state: Ctrl-C it gets too, SIGTERM is passed on to it.

    After either this process is to end as well: KeyboardInterrupt, or SystemExit with the shell's status of SIGTERM.
    In other threads than the main one that is so within `passing_on`.
    """
    if threading.current_thread() is threading.main_thread():
        with passing_on():
            return _run(command)
    return _run(command)


def _run(command: Sequence[str]) -> int:
    process: subprocess.Popen | None = None
    try:
        process = subprocess.Popen(command, env=train_command()[1])
        _running.processes.add(process)
        if _running.asked:  # while it was started
            process.send_signal(signal.SIGTERM)
        status = process.wait()
    except KeyboardInterrupt:
        if process is not None:
            process.wait()
        raise
    finally:
        if process is not None:
            _running.processes.discard(process)
    if _running.asked:
        raise SystemExit(128 + signal.SIGTERM)
    return status
