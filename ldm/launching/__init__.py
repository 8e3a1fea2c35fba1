"""Runs the jobs of ``train.py -m``, of a sweep or of a tree: mostly ``train.py`` with its words, in fresh processes.

A launcher is one file here and one YAML in conf/launcher.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ldm.installed import script_command, train_command

FINISHED, STOPPED, SUBMITTED = 0, 3, -1  # what a launcher returns for a job; any other number is its exit status


@dataclass(frozen=True)
class Job:
    """One training: the run's name, and the words of its command line, ``run=`` among them. Or of another `script`."""

    name: str
    words: tuple[str, ...]
    script: str = "train"

    @property
    def trains(self) -> bool:
        """Whether it is train.py, which starts the processes of further devices itself."""
        return self.script == "train"

    def command(self) -> list[str]:
        """The process that does it."""
        return [*(train_command()[0] if self.trains else script_command(self.script)), *self.words]


class Launcher(Protocol):
    """Runs jobs, in whatever order."""

    def __call__(self, jobs: Sequence[Job]) -> list[int]:
        """Start all jobs, and return how each ended: FINISHED, STOPPED (and saved), SUBMITTED (not waited for), or the
        exit status of a failure. A job that fails does not stop the others. Raises UserError where none can be started.
        """
