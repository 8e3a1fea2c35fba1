"""What a loader's worker processes do with signals, and what their failures are called."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ldm.data.user_error import UserError

TOO_MANY = ": raise the limit with ulimit -n 4096, or lower data.num_workers"
SHARED = "/dev/shm"
PREFETCHED = 2  # batches that each worker makes ahead: the default of torch's loader
AGAIN = (
    " If memory ran out, lower data.num_workers or data.memo_samples; the same command goes on from the last checkpoint"
)


class WorkerError(UserError):
    """A data worker hangs or was killed; the message names it and the way out."""


@contextmanager
def sigterm_held() -> Iterator[None]:
    """While workers are forked: what libraries start in them at once, threads, has SIGTERM blocked as they have.

    It would end the worker through any thread that has not. One for this process waits until the block is left.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent(worker: int) -> None:
    """Let a worker end only when its parent says so: a signal to the whole group must not break the save it asks for.

    SIGTERM is also how the parent ends its workers, so its sender is looked at, by a thread that waits for it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


def check_shared_memory(batch_bytes: int, num_workers: int, processes: int = 1) -> None:
    """Raises WorkerError if the batches made ahead cannot all lie in shared memory, where workers hand them over.

    `processes` share it. Not known, and not checked, where there is no /dev/shm.
    """
    if num_workers == 0 or not Path(SHARED).is_dir():
        return
    room = os.statvfs(SHARED)
    free, needed = room.f_bavail * room.f_frsize, batch_bytes * num_workers * PREFETCHED * processes
    if needed > free:
        workers = f"{num_workers} workers" if processes == 1 else f"{num_workers} workers of {processes} processes"
        raise WorkerError(
            f"shared memory ({SHARED}, {free >> 20} MiB free) is too small for the batches of {workers}, "
            f"{needed >> 20} MiB: enlarge it (docker run --shm-size=8g or --ipc=host), or set data.num_workers=0, or a "
            "smaller data.batch_size"
        )


class Alarm:
    """Ends the wait for a batch after `timeout_seconds`, by killing the workers: a loader that loses one gives up.

    DataLoader's own timeout does not end the wait for one that is stopped while it hands its batch over.
    """

    def __init__(self, timeout_seconds: float):
        self.timeout_seconds = timeout_seconds
        self._since: float | None = None  # when the present wait began
        self._rang = False
        self._stopped: int | None = None  # a worker's process that was found stopped then
        self._off = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    @contextmanager
    def waiting_for(self, worker: int) -> Iterator[None]:
        """While a batch of this `worker` is waited for. Raises WorkerError if it takes too long, or one is killed."""
        self._since = time.monotonic()
        try:
            with failures_named():
                yield
        except (ValueError, RuntimeError, EOFError, OSError) as error:
            if not self._rang and isinstance(error, ConnectionError | EOFError):
                raise WorkerError(
                    f"a data worker died while it handed over a batch that worker {worker} made.{AGAIN}"
                ) from error
            if not self._rang:
                raise
            reason = f"process {self._stopped} is stopped" if self._stopped else "it hangs, or the storage does"
            raise WorkerError(
                f"no batch of data worker {worker} in {self.timeout_seconds:g} s (data.timeout_seconds): {reason}"
            ) from error
        finally:
            self._since = None

    def switch_off(self) -> None:
        """Stop the alarm: no further batch will be waited for."""
        self._off.set()

    def _watch(self) -> None:
        while not self._off.wait(min(1.0, self.timeout_seconds / 4)):
            since = self._since
            if since is not None and time.monotonic() - since > self.timeout_seconds:
                self._rang = True
                for process in multiprocessing.active_children():
                    self._stopped = process.pid if _is_stopped(process.pid) else self._stopped
                    process.kill()  # also because one that hangs would be waited for when this process ends
                return


def _is_stopped(pid: int) -> bool:
    """Whether a process was halted by SIGSTOP or a debugger; not known where there is no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


@contextmanager
def failures_named() -> Iterator[None]:
    """Re-raise as WorkerError what torch raises when a worker dies or there are too many open files."""
    try:
        yield
    except OSError as error:
        if "Too many open files" not in str(error):
            raise
        raise WorkerError(f"too many open files{TOO_MANY}") from error
    except RuntimeError as error:
        text = str(error)
        if not text.startswith("DataLoader worker (pid"):
            raise
        raise WorkerError(f"{text.splitlines()[0].strip()}{AGAIN}") from error
