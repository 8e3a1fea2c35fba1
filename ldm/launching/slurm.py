"""Jobs of a SLURM cluster, by submitit: an array for all that ask for the same nodes, requeued before their time is up.

Each job gets the nodes and devices that its own ``trainer.num_nodes`` and ``trainer.devices`` say, one task for each
device. Before the time limit the tasks are told to stop; rank zero's then waits until the run is saved and puts the job
back into the queue, where the same command resumes.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ldm.config import compose
from ldm.errors import UserError
from ldm.installed import IN_CHECKOUT, PACKAGE, train_command
from ldm.launching import STOPPED, SUBMITTED, Job
from ldm.launching.local import is_stopping

NAMED = 5  # jobs in a message
IMPORTABLE = (
    [f"export PYTHONPATH={PACKAGE.parent}:$PYTHONPATH"] if IN_CHECKOUT else []
)  # a checkout may not be installed
POLL_SECONDS = 5.0


class Nodes(NamedTuple):
    """What a job runs on: `tasks` of each node, each with a GPU unless they compute on CPUs."""

    nodes: int
    tasks: int
    gpus: int


class Submitit:
    """Submits jobs with the options of sbatch that are given; `more` are further ones by sbatch's names.

    `timeout_min`: minutes of one allocation; `max_requeues`: how many times a job may use up its time; `stop_seconds`:
    how long before the end it is told to save. With `wait` it returns when all jobs have ended, or when it is told to
    stop: those submitted go on. `setup` are lines of
    shell before the job, such as the activation of an environment; its process logs are in `folder`.
    """

    def __init__(
        self,
        folder: str = "runs/submitit",
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        constraint: str | None = None,
        timeout_min: int = 24 * 60,
        max_requeues: int = 100,
        stop_seconds: int = 180,
        cpus_per_task: int = 8,
        mem_gb: float | None = None,
        at_once: int = 256,
        setup: Sequence[str] = (),
        more: Mapping[str, Any] | None = None,
        wait: bool = False,
    ):
        for key, value in {"timeout_min": timeout_min, "cpus_per_task": cpus_per_task, "at_once": at_once}.items():
            if value < 1:
                raise UserError(f"launcher.{key}={value}: must be at least 1")
        if stop_seconds >= 60 * timeout_min:
            raise UserError(
                f"launcher.stop_seconds={stop_seconds}: jobs of launcher.timeout_min={timeout_min} would be told to "
                "stop as they begin, over and over; give them more time, or less of it to stop in"
            )
        self.folder = Path(folder).expanduser().absolute()
        self.max_requeues = max_requeues
        self.wait = wait
        self.options = {
            "slurm_partition": partition, "slurm_account": account, "slurm_qos": qos, "slurm_constraint": constraint,
            "timeout_min": timeout_min, "cpus_per_task": cpus_per_task, "mem_gb": mem_gb,
            "slurm_array_parallelism": at_once, "slurm_signal_delay_s": stop_seconds,
            "slurm_setup": [*IMPORTABLE, *setup],
            "slurm_additional_parameters": dict(more or {}),
        }  # fmt: skip

    def __call__(self, jobs: Sequence[Job]) -> list[int]:
        _submitit()
        for program in ("sbatch", "srun", "scontrol"):
            if shutil.which(program) is None:
                raise UserError(f"launcher=submitit: there is no {program} here; start it on a machine of the cluster")
        if is_stopping():
            return [STOPPED] * len(jobs)
        arrays: dict[Nodes, list[int]] = {}
        for place, job in enumerate(jobs):
            arrays.setdefault(nodes_of(job), []).append(place)  # mistakes are reported before any job is submitted
        submitted: dict[int, Any] = {}
        for nodes, places in arrays.items():
            submitted |= zip(places, self._submit(nodes, [jobs[place] for place in places]), strict=True)
        for place in list(submitted)[:NAMED]:
            print(f"{jobs[place].name}: job {submitted[place].job_id}, {submitted[place].paths.stdout}")
        print(f"{len(jobs)} jobs submitted; squeue --me shows them, scancel stops them")
        if not self.wait:
            return [SUBMITTED] * len(jobs)
        statuses = [_ended(submitted[place]) for place in range(len(jobs))]
        left = [jobs[place].name for place, status in enumerate(statuses) if status is None]
        if left:
            more = ", ..." if len(left) > NAMED else ""
            print(
                f"told to stop; these jobs go on: {', '.join(left[:NAMED])}{more}; squeue --me shows them, scancel "
                "stops them; start the same command again when they have ended",
                flush=True,
            )
        return [STOPPED if status is None else status for status in statuses]

    def _submit(self, nodes: Nodes, jobs: Sequence[Job]) -> list[Any]:
        submitit = _submitit()
        executor = submitit.AutoExecutor(self.folder / "%j", "slurm", slurm_max_num_timeout=self.max_requeues)
        options = {key: value for key, value in self.options.items() if value is not None}
        options |= {"nodes": nodes.nodes, "tasks_per_node": nodes.tasks, "name": jobs[0].name}
        if nodes.gpus:
            options["gpus_per_node"] = nodes.gpus
        executor.update_parameters(**options)
        try:
            with executor.batch():
                return [executor.submit(Training(job.command())) for job in jobs]
        except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError, OSError) as error:
            raise UserError(f"launcher=submitit: sbatch refuses ({' '.join(str(error).split())[:300]})") from error


def nodes_of(job: Job) -> Nodes:
    """The nodes a job needs. Raises UserError for a mistake in its words, or if the number of devices is not given."""
    if not job.trains:
        return Nodes(1, 1, 0 if "device=cpu" in job.words else 1)
    trainer = compose("config", list(job.words))["trainer"]
    devices = trainer["devices"]
    count = len(devices) if isinstance(devices, list) else devices
    if type(count) is not int or count < 1:
        raise UserError(f"trainer.devices={devices}: launcher=submitit asks for a number of devices; give one")
    return Nodes(trainer["num_nodes"], count, 0 if trainer["accelerator"] == "cpu" else count)


class Training:
    """What each task of a job calls: the training in a process of its own, and how it is stopped and requeued."""

    def __init__(self, command: Sequence[str]):
        self.command = list(command)
        self.process: subprocess.Popen | None = None

    def __call__(self) -> int:
        self.process = subprocess.Popen(self.command, env=train_command()[1], preexec_fn=_leave_the_signal_to_submitit)
        _wait(self.process)
        return self.process.wait()

    def checkpoint(self) -> Any:
        """Called before the time limit: let the run save itself, and return what to requeue."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            _wait(self.process)
        return _submitit().helpers.DelayedSubmission(Training(self.command))


def _submitit() -> Any:
    """The submitit library, needed by this launcher only. Raises UserError if it is not installed."""
    try:
        import submitit
    except ImportError as error:
        raise UserError(f"launcher=submitit: {error}; pip install submitit") from error
    return submitit


def _leave_the_signal_to_submitit() -> None:
    """Ignore submitit's signal here: SLURM sends it to all processes of a task, and it would kill the training."""
    signal.signal(_submitit().JobEnvironment._usr_sig(), signal.SIG_IGN)


def _wait(process: subprocess.Popen) -> None:
    """Until it has ended. `Popen.wait` holds a lock, which a signal's handler that waits as well would never get."""
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        return  # waited for already


def _ended(job: Any) -> int | None:
    """Wait for a job; its exit status is that of rank zero's task, None of one that goes on when this is to stop."""
    errors = _submitit().core.utils
    while not job.done():
        if is_stopping():
            return None
        time.sleep(POLL_SECONDS)
    try:
        return job.results()[0]
    except errors.FailedJobError:
        return 1
    except errors.UncompletedJobError:  # cancelled
        return STOPPED
