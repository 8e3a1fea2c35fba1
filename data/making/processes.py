"""Shards made in parallel processes, which end when the one that started them does, however it does."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import Any

from ldm.data.making.encode import Job, make_shard
from ldm.data.user_error import UserError

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class _Shared:
    """What all processes see: how many images are done, and whether to stop."""

    count: Synchronized
    stop: Event

    def advance(self, count: int) -> None:
        """Count images; raises KeyboardInterrupt where the run has been stopped."""
        with self.count.get_lock():
            self.count.value += count
        if self.stop.is_set():
            raise KeyboardInterrupt


_shared: _Shared | None = None  # set in a worker process when it starts: shared memory cannot travel with a job


def finish(jobs: list[Job], workers: int, advance: Callable[[int], None]) -> Iterator[dict[str, Any]]:
    """What `make_shard` returns for each job, in the order of completion; `advance` is called for each image."""
    workers = min(workers, len(jobs))
    if workers == 1:
        for job in jobs:
            yield make_shard(job, advance)
        return
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    shared = _Shared(context.Value("q", 0), context.Event())
    pool = ProcessPoolExecutor(workers, context, _start, (shared.count, shared.stop))
    seen = 0
    try:
        waiting = {pool.submit(_work, job) for job in jobs}
        while waiting:
            done, waiting = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
            now = shared.count.value
            advance(now - seen)
            seen = now
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        shared.stop.set()
        raise UserError(
            "a process that reads images ended without a word, perhaps for want of memory; the same command goes on, "
            "fewer workers= need less"
        ) from None
    except BaseException:
        shared.stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start(count: Synchronized, stop: Event) -> None:
    global _shared
    _shared = _Shared(count, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process says when to stop
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit when the parent is gone: killing it does not kill its children, and two writers would corrupt a shard."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(job: Job) -> dict[str, Any]:
    assert _shared is not None
    return make_shard(job, _shared.advance)
