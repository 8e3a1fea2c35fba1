"""Parts of a long piece of work, each jobs one after the other that are only known once those before have finished."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from ldm.launching import FINISHED, STOPPED, Job, Launcher
from ldm.launching.pool import Pool


class Named(Protocol):
    """What has a name to fail under."""

    @property
    def name(self) -> str: ...


P = TypeVar("P", bound=Named)


class Sequences(Generic[P]):
    """`parts`, `jobs` of them at once: `jobs_of(part)`, and then `after(part)`. A part that fails stops no other."""

    def __init__(
        self, parts: Sequence[P], jobs_of: Callable[[P], Generator[Job]], after: Callable[[P], None],
        launch: Launcher, jobs: int,
    ):  # fmt: skip
        self.parts = parts
        self.jobs_of = jobs_of
        self.after = after
        self.pool = Pool(launch, jobs)
        self.failed: list[str] = []

    def run(self) -> bool:
        """Do all. Returns whether a job was stopped, and saved, so that the rest is still to do."""
        return self.pool.run([partial(self._part, part) for part in self.parts])

    def do(self, job: Job, name: str) -> bool:
        """Run a job of what is called `name`; whether it finished."""
        status = self.pool.do(job)
        if status not in (FINISHED, STOPPED):
            self.failed.append(name)
        return status == FINISHED

    def _part(self, part: P) -> None:
        with closing(self.jobs_of(part)) as jobs:
            for job in jobs:
                if self.pool.stops or not self.do(job, part.name):
                    return
        if not self.pool.stops:
            self.after(part)


def stage_job(stage: str, cell: str, tree: Path, device: str, script: str) -> Job:
    """A `stage` of what is called `cell`, which `script` does in a process of its own, as the file `tree` says."""
    return Job(f"{cell}: {stage}", (f"stage={stage}", f"cell={cell}", f"tree={tree}", f"device={device}"), script)
