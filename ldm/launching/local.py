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
    """The exit status of a command. On Ctrl-C, which the command gets too, wait until it has saved its state."""
    process = subprocess.Popen(command, env=train_command()[1])
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
