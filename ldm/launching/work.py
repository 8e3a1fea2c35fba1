"""Work of many jobs, alone in its folder: begun or gone on with, and what there is of it then shown."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ldm.errors import UserError
from ldm.files import write_json
from ldm.holding import held
from ldm.launching.local import passing_on

T = TypeVar("T")


class Work(Protocol):
    """Such as a `ldm.launching.chain.Chain`; `failed` are the names of what could not be done."""

    failed: list[str]

    def run(self) -> bool:
        """Do all. Returns whether a job was stopped, and saved, so that the rest is still to do."""


def finish(
    work: Work, folder: Path, doing: str, kept: Mapping[str, dict[str, Any]], said: str, show: Callable[[], T]
) -> T | None:
    """Do the `work`, `doing` which holds the `folder`, and then `show`: what that gives, None if a job was stopped.

    `kept` are files of the folder for its jobs to read, by name; `said` is printed first. Raises UserError for what
    failed, once the rest is done and shown.
    """
    with held(folder, doing):
        for name, tree in kept.items():
            write_json(folder / name, tree)
        print(said, flush=True)
        with passing_on():
            stopped = work.run()
        shown = show()
        if work.failed and not stopped:
            raise UserError(f"these failed, their messages are above: {', '.join(work.failed)}")
    return None if stopped else shown
