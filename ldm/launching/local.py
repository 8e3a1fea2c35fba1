"""Jobs on this machine, one after the other."""

import subprocess
from collections.abc import Sequence

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
    """The status of a process that has ended. Ctrl-C, which it gets too, waits until it has saved what it does."""
    process = subprocess.Popen(command, env=train_command()[1])
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
