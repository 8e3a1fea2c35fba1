"""Calls in a forked process, one after another, with limits on CPU time and memory; a crash is named."""

import multiprocessing
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

FORK = multiprocessing.get_context("fork")
CPU_SECONDS = 5
GROWTH_MIB = 512
ROOM_MIB = 4096  # beyond this the process gets no memory, to protect the machine
PATIENCE_SECONDS = 60  # for a call that waits for something


class Isolated:
    """`call(number)` in another process; what it returns, or the one line that says how it ended."""

    def __init__(self, call: Callable[[int], list[str]]):
        self._call = call
        self._pipe: Connection | None = None
        self._process: multiprocessing.process.BaseProcess | None = None

    def __enter__(self) -> "Isolated":
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def __call__(self, number: int) -> list[str]:
        """What is wrong with the call of this number: its own problems, too much time or memory, its end."""
        if self._process is None:
            self._begin()
        self._pipe.send(number)
        if not self._pipe.poll(PATIENCE_SECONDS):
            self._end()
            return [f"it waited for over {PATIENCE_SECONDS} s"]
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            status = self._process.exitcode
            self._end()
            if status == -signal.SIGPROF:
                return [f"it took over {CPU_SECONDS} s of the processor"]
            return [f"the process ended with {status}"]

    def _begin(self) -> None:
        self._pipe, theirs = FORK.Pipe()
        self._process = FORK.Process(target=_serve, args=(self._call, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = None


def _serve(call: Callable[[int], list[str]], pipe: Connection) -> None:
    room = _status("VmSize") + (ROOM_MIB << 10)
    resource.setrlimit(resource.RLIMIT_AS, (room << 10, resource.RLIM_INFINITY))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever it is in
    while True:
        number = pipe.recv()
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak memory
        before = _status("VmRSS")
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        problems = call(number)
        signal.setitimer(signal.ITIMER_PROF, 0)
        grown = (_status("VmHWM") - before) >> 10
        with suppress(BrokenPipeError):
            pipe.send([*problems, *([f"it grew by {grown} MiB"] if grown > GROWTH_MIB else [])])


def _status(name: str) -> int:
    """A memory figure of this process, KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
