"""Jobs on this machine, one after the other."""

import os
import subprocess
from collections.abc import Sequence

from ldm.launching import Job


def launch(jobs: Sequence[Job]) -> list[int]:
    """Each job in a fresh process, which starts those of its further devices itself."""
    statuses = []
    for number, job in enumerate(jobs, start=1):
        print(f"[{number}/{len(jobs)}] {job.name}", flush=True)
        statuses.append(subprocess.run(job.command(), env=os.environ).returncode)
    return statuses
