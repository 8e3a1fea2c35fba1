"""What a loader's worker processes do with signals, and what their failures are called."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class WorkerError(ValueError):
    """A data worker hangs or was killed; the message names it and the way out."""


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


@contextmanager
def failures_named(worker: int = 0, timeout_seconds: float = 0.0) -> Iterator[None]:
    """What torch raises about its workers in here, while a batch of `worker` is waited for, becomes a WorkerError."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if text.startswith("DataLoader timed out"):
            for process in multiprocessing.active_children():
                process.kill()  # one that hangs would not end with this process, which would wait for it
            raise WorkerError(
                f"data worker {worker} has not made its batch in {timeout_seconds:g} s (data.timeout_seconds): it "
                "hangs, or the storage does"
            ) from error
        if text.startswith("DataLoader worker (pid"):
            raise WorkerError(
                f"{text.splitlines()[0].strip()} If memory ran out, lower data.num_workers or data.memo_samples; "
                "the same command goes on from the last checkpoint"
            ) from error
        raise
