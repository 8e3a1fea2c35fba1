"""A progress bar for work that turns out to take long, on a terminal, in the first of several processes."""

import os
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE_SECONDS = 3.0

Item = TypeVar("Item")


def watched(items: Iterable[Item], total: int, text: str) -> Iterator[Item]:
    """The items as they come; from a few seconds on with a bar that says how many of `total` have."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(text, total=total)
    is_first = all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    shown = is_first and console.is_terminal
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
