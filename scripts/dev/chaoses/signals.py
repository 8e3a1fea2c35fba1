"""SIGTERM, SIGUSR1 or SIGINT to the process, its group, torchrun or one rank: saved and stopped within 10 s.

SIGTERM and SIGUSR1 leave the marker ``requeue``; under SLURM SIGUSR1 calls scontrol, here a fake one on PATH.
Afterwards the same command ends bit-equal to the run that was never stopped.
"""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from toys import ROOT, differences

from chaoses.jobs import Job, descendants, last_step, whole_step, write_down_keys
from chaoses.outcome import Outcome
from chaoses.toy_runs import ToyRuns
from ldm.training.callbacks.signals import MARKER

GOAL = "a signal: saved and stopped within 10 s, marked for requeueing, the same command goes on"
SECONDS = 10.0
LONG = 100_000  # steps: it does not end before the signal
MORE_STEPS = 3  # that the same command does afterwards


@dataclass(frozen=True)
class Target:
    """Whom a signal is sent to: a `rank` of `ranks`, all of them (None) or, by `group`, their workers as well."""

    name: str
    ranks: int = 1
    num_workers: int = 0
    rank: int | None = 0
    group: bool = False


TARGETS = (
    Target("the process"),
    Target("the process with workers", num_workers=2),
    Target("its group with workers", num_workers=2, group=True),
    Target("rank 1 of 2", ranks=2, rank=1),
    Target("all ranks", ranks=2, rank=None),
)
NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
CASES = tuple((number, target) for target in TARGETS for number in NUMBERS)
RUNS = len(CASES) + len(NUMBERS)  # and each signal to torchrun


def run(runs: int, rng: random.Random, folder: Path) -> Outcome:
    """The cases in turn; the last ones start torchrun itself."""
    outcome, toys, slowest = Outcome(), ToyRuns(folder), 0.0
    for number in range(runs):
        place = number % RUNS
        if place < len(CASES):
            which, target = CASES[place]
            problems, seconds = _trial(toys, f"run{number}", which, target, rng)
            name = f"{signal.Signals(which).name} to {target.name}"
        else:
            which = NUMBERS[place - len(CASES)]
            problems, seconds = _torchrun(toys, f"run{number}", which, rng)
            name = f"{signal.Signals(which).name} to torchrun"
        slowest = max(slowest, seconds)
        outcome.note(name, problems)
    outcome.facts.append(f"the slowest stopped after {slowest:.1f} s")
    return outcome


def _trial(
    toys: ToyRuns, name: str, number: signal.Signals, target: Target, rng: random.Random
) -> tuple[list[str], float]:
    """(what is wrong, seconds from the signal to the end)."""
    arguments = toys.arguments("diffusion", name, f"data.num_workers={target.num_workers}")
    queue = Queue(toys.folder / f"{name}-queue")
    noted, aim = toys.folder / f"{name}-keys", rng.randrange(1, 12)
    job = Job(
        _long(arguments), toys.folder / f"{name}.txt", target.ranks, lambda: write_down_keys(noted), queue.environment
    )
    if not job.wait_until(lambda: last_step(noted) >= aim):
        return [f"it did not come to step {aim}: {job.said[-300:]}"], 0.0
    began = time.monotonic()
    job.signal(number, target.rank, target.group)
    statuses = job.wait(60)
    seconds = time.monotonic() - began
    problems = [] if set(statuses) == {3} else [f"exit statuses {statuses}: {job.said[-300:]}"]
    problems += _stopped(job.said, seconds, number, toys.folder / name, queue)
    return problems or _goes_on(toys, name, target.ranks), seconds


def _torchrun(toys: ToyRuns, name: str, number: signal.Signals, rng: random.Random) -> tuple[list[str], float]:
    arguments = _long(toys.arguments("diffusion", name, "trainer.devices=2", "trainer.strategy=ddp"))
    queue, output = Queue(toys.folder / f"{name}-queue"), toys.folder / f"{name}.txt"
    environment = {**os.environ, **queue.environment}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["--signals-to-handle=SIGTERM,SIGINT,SIGUSR1", "train.py"]  # SIGUSR1 would end torchrun alone
    with output.open("w") as file:
        process = subprocess.Popen(
            [*command, *arguments], cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    run = toys.folder / name
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/step_*.ckpt/manifest.json")):
        if process.poll() is not None or time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            return [f"torchrun did not come to a checkpoint: {output.read_text()[-300:]}"], 0.0
        time.sleep(0.05)
    time.sleep(rng.uniform(0, 0.5))
    ranks = descendants(process.pid)
    began = time.monotonic()
    os.kill(process.pid, number)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    seconds = time.monotonic() - began
    for pid in ranks:  # if torchrun left them behind
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return _stopped(output.read_text(), seconds, number, run, queue) or _goes_on(toys, name, 2), seconds


def _long(arguments: list[str]) -> list[str]:
    return [f"max_steps={LONG}" if word.startswith("max_steps=") else word for word in arguments]


class Queue:
    """A fake SLURM that records the commands it is given."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self._asked = folder / "asked.txt"
        scontrol = folder / "scontrol"
        scontrol.write_text(f'#!/bin/sh\necho "$@" >> {self._asked}\n')
        scontrol.chmod(0o755)
        self.environment = {"SLURM_JOB_ID": "4711", "PATH": f"{folder}:{os.environ['PATH']}"}

    @property
    def asked(self) -> str:
        return self._asked.read_text() if self._asked.exists() else ""


def _stopped(said: str, seconds: float, number: signal.Signals, run: Path, queue: Queue) -> list[str]:
    problems = []
    step = whole_step(run)
    if f"stopped and saved at step {step} of {LONG}" not in said:
        problems.append(f"step {step} is saved, and it said {said[-300:]!r}")
    if seconds > SECONDS:
        problems.append(f"stopped only after {seconds:.1f} s")
    marker = run / MARKER
    expected = f"{number.name} at step {step} of {LONG}\n" if number != signal.SIGINT else None
    if (marker.read_text() if marker.exists() else None) != expected:
        problems.append(f"marker {marker.read_text() if marker.exists() else None!r} instead of {expected!r}")
    if queue.asked != ("requeue 4711\n" if number == signal.SIGUSR1 else ""):
        problems.append(f"scontrol was asked {queue.asked!r}")
    return problems


def _goes_on(toys: ToyRuns, name: str, ranks: int) -> list[str]:
    """Resume with the same command, for a few more steps, and compare with a run that was not stopped."""
    run = toys.folder / name
    last = whole_step(run) + MORE_STEPS
    job = Job(toys.arguments("diffusion", name, f"max_steps={last}"), toys.folder / f"{name}-again.txt", ranks)
    statuses = job.wait()
    if any(statuses):
        return [f"gone on with, it ended with {statuses}: {job.said[-300:]}"]
    if (run / MARKER).exists():
        return ["the marker stays after the run has gone on"]
    whole, _ = toys.whole("diffusion", ranks, f"max_steps={last}")
    return differences(whole, run, last)
