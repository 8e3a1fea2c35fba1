"""What the first of several processes prints for the user: a line, or a progress bar if the work takes long."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ldm.data.errors import printable

PATIENCE_SECONDS = 3.0

Item = TypeVar("Item")


def watched(items: Iterable[Item], total: int, text: str) -> Iterator[Item]:
    """The items as they come; from a few seconds on with a bar that says how many of `total` have."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(text, total=total)
    shown = _is_first() and console.is_terminal
    began = time.monotonic()
    try:
        for item in items:
            yield item
            bar.advance(task)
            if shown and not bar.live.is_started and time.monotonic() - began > PATIENCE_SECONDS:
                bar.start()
    finally:
        if bar.live.is_started:
            bar.stop()


def say(line: str) -> None:
    """Print one line about the data, as a terminal can take it."""
    if _is_first():
        print(printable(line), file=sys.stderr)


def _is_first() -> bool:
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
