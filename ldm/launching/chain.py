"""Steps of a long job that need each other: each a process of its own, as many at once as there is room for."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldm.errors import UserError
from ldm.launching import FINISHED, Job, Launcher
from ldm.launching.pool import Pool


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Step:
    """A job that begins once those named in `needs` have finished; what is left of it is done `after` it has."""

    job: Job
    needs: tuple[str, ...] = ()
    after: Callable[[], None] = _nothing

    @property
    def name(self) -> str:
        return self.job.name


def check_chain(tree: Mapping[str, Any], root: str, who: str) -> None:
    """Raises UserError for keys of conf/`root`.yaml that no chain could be launched with; `who` is what needs it.

    Where it measures, a `metric` is one of them.
    """
    for key in ("logger", "launcher", "metric"):
        if key in tree and tree[key] is None:
            raise UserError(f"{key}=null: {who} needs one; leave it out for that of conf/{root}.yaml")
    if tree["launcher"].get("wait") is False:
        raise UserError("launcher.wait=false: what follows needs the trained runs; set it to true")
    if tree["jobs"] < 1:
        raise UserError(f"jobs={tree['jobs']}: must be at least 1")


class Chain:
    """`steps`, `jobs` of them at once, the first that can begin first; a step that fails stops only what needs it."""

    def __init__(self, steps: Sequence[Step], launch: Launcher, jobs: int):
        self.waiting = list(steps)
        self.pool = Pool(launch, jobs)
        self.failed: list[str] = []
        self._done: set[str] = set()
        self._under_way = 0
        self._changed = threading.Condition()

    def run(self) -> bool:
        """Do all. Returns whether a training was stopped, and saved, so that the rest is still to do."""
        return self.pool.run([self._work] * self.pool.jobs)

    def _work(self) -> None:
        while (step := self._take()) is not None:
            finished = False
            try:
                finished = self._do(step)
            finally:
                with self._changed:
                    self._under_way -= 1
                    if finished:
                        self._done.add(step.name)
                    else:
                        self.failed.append(step.name)
                    self._changed.notify_all()

    def _take(self) -> Step | None:
        """The next step that can begin, once there is one; None when there will be none."""
        with self._changed:
            while not self.pool.stops:
                ready = next((step for step in self.waiting if self._done.issuperset(step.needs)), None)
                if ready is not None:
                    self.waiting.remove(ready)
                    self._under_way += 1
                    return ready
                if not self._under_way:
                    return None
                self._changed.wait(timeout=1.0)
            return None

    def _do(self, step: Step) -> bool:
        return self.pool.do(step.job) == FINISHED and _ends(step)


def _ends(step: Step) -> bool:
    """Do what is left of a step whose job has finished; False if it cannot be done, which is said."""
    try:
        step.after()
    except (UserError, OSError) as error:
        print(f"{step.name}: {error}", flush=True)
        return False
    return True
