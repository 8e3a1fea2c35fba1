"""Jobs on several devices of this machine, one job after the other: torchrun starts a process for each device."""

import sys
from collections.abc import Sequence

from ldm.errors import UserError
from ldm.launching import Job
from ldm.launching.local import run


class Torchrun:
    """Each job under ``torchrun --nproc_per_node=devices``; a training is told its ``trainer.devices``."""

    def __init__(self, devices: int = 2):
        if devices < 1:
            raise UserError(f"launcher.devices={devices}: must be at least 1")
        self.devices = devices

    def __call__(self, jobs: Sequence[Job]) -> list[int]:
        statuses = []
        for number, job in enumerate(jobs, start=1):
            print(f"[{number}/{len(jobs)}] {job.name}, {self.devices} processes", flush=True)
            statuses.append(run(self.command(job)))
        return statuses

    def command(self, job: Job) -> list[str]:
        """torchrun with the job's own program and words."""
        python, *program = job.command()
        under = [python, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.devices}"]
        assert python == sys.executable
        return [*under, *program, *([f"trainer.devices={self.devices}"] if job.trains else [])]
