"""Jobs on this machine, one after the other; whoever stops the sweep stops the job that trains."""

import signal
import subprocess
from collections.abc import Sequence
from typing import Any

from ldm.installed import train_command
from ldm.launching import Job


def launch(jobs: Sequence[Job]) -> list[int]:
    """Each job in a fresh process, which starts those of its further devices itself."""
    statuses = []
    for number, job in enumerate(jobs, start=1):
        print(f"[{number}/{len(jobs)}] {job.name}", flush=True)
        statuses.append(run(job.command()))
    return statuses


def run(command: Sequence[str]) -> int:
    """The exit status of a command, once it has saved its state: Ctrl-C it gets too, SIGTERM is passed on to it.

    After either this process is to end as well: KeyboardInterrupt, or SystemExit with the shell's status of SIGTERM.
    """
    asked: list[int] = []
    process: subprocess.Popen | None = None

    def pass_on(number: int, frame: Any) -> None:
        asked.append(number)
        if process is not None:
            process.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        process = subprocess.Popen(command, env=train_command()[1])
        if asked:  # while it was started
            process.send_signal(signal.SIGTERM)
        status = process.wait()
    except KeyboardInterrupt:
        if process is not None:
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if asked:
        raise SystemExit(128 + signal.SIGTERM)
    return status
