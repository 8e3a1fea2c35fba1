"""Jobs of a long piece of work that goes on where it was stopped: fresh processes, so many at once, until one stops."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ldm.launching import FINISHED, STOPPED, Job, Launcher
from ldm.launching.local import is_stopping, stop


class Pool:
    """`jobs` workers that start processes by `launch`. For the main thread, within `ldm.launching.local.passing_on`."""

    def __init__(self, launch: Launcher, jobs: int):
        self.launch = launch
        self.jobs = jobs
        self._stopping = threading.Event()

    @property
    def stops(self) -> bool:
        """Whether a job was stopped and saved, or this process told to stop: nothing more is to be begun."""
        return self._stopping.is_set() or is_stopping()

    def run(self, work: Sequence[Callable[[], None]]) -> bool:
        """Call all of `work`, `jobs` at once. Returns whether it `stops`, so that the rest is still to do."""
        with ThreadPoolExecutor(self.jobs) as pool:
            done = [pool.submit(one) for one in work]
            try:
                for future in done:
                    future.result()
            except BaseException:  # Ctrl-C reaches the jobs too, which save themselves
                stop()
                raise
        return self.stops

    def do(self, job: Job) -> int:
        """Run a job of one of the workers and return its status; one that failed is named."""
        status = self.launch([job])[0]
        if status == STOPPED:
            self._stopping.set()
        elif status != FINISHED:
            print(f"{job.name} ended with status {status}; its message is above", flush=True)
        return status
