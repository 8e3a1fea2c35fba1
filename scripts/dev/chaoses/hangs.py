"""A rank is stopped, or a data worker hangs: the run finds and names it within its timeout + 10 s, and ends."""

import os
import random
import signal
import time
from pathlib import Path

from chaoses.jobs import Job, children, last_step, write_down_keys
from chaoses.outcome import Outcome
from chaoses.toy_runs import ToyRuns

GOAL = "a stopped rank or a hung data worker is named within its timeout + 10 s"
RUNS = 8
TIMEOUT_SECONDS = 8.0
GRACE_SECONDS = 10.0
LONG = "max_steps=100000"


def run(runs: int, rng: random.Random, folder: Path) -> Outcome:
    """Rank 0, rank 1, a data worker of one rank, of two, in turn."""
    outcome, toys, slowest = Outcome(), ToyRuns(folder), 0.0
    for number in range(runs):
        stopped, ranks = ((0, 2), (1, 2), (None, 1), (None, 2))[number % 4]
        problems, seconds = _trial(toys, f"run{number}", ranks, stopped, rng)
        slowest = max(slowest, seconds)
        what = "a data worker" if stopped is None else f"rank {stopped}"
        outcome.note(f"{what} of {ranks} ranks stopped", problems)
    outcome.facts.append(f"named after {slowest:.1f} s at most, with a timeout of {TIMEOUT_SECONDS:g} s")
    return outcome


def _trial(toys: ToyRuns, name: str, ranks: int, stopped: int | None, rng: random.Random) -> tuple[list[str], float]:
    """(what is wrong, seconds until it was named)."""
    key = "data" if stopped is None else "callback.watchdog"
    more = (LONG, f"{key}.timeout_seconds={TIMEOUT_SECONDS}", f"data.num_workers={2 if stopped is None else 0}")
    noted, aim = toys.folder / f"{name}-keys", rng.randrange(1, 30)
    arguments = toys.arguments("diffusion", name, *more)
    job = Job(arguments, toys.folder / f"{name}.txt", ranks, prepare=lambda: write_down_keys(noted))
    if not job.wait_until(lambda: last_step(noted) >= aim):
        return [f"it did not come to step {aim}: {job.said[-300:]}"], 0.0
    rank = rng.randrange(ranks) if stopped is None else stopped
    victim = children(job.processes[rank].pid)[0] if stopped is None else job.processes[rank].pid
    os.kill(victim, signal.SIGSTOP)
    began = time.monotonic()
    named = "data worker" if stopped is None else f"rank {stopped}, step"
    found = job.wait_until(lambda: named in job.said, TIMEOUT_SECONDS + GRACE_SECONDS)
    seconds = time.monotonic() - began
    others = [process for place, process in enumerate(job.processes) if place != rank or stopped is None]
    others[0].join(GRACE_SECONDS)
    problems = [] if found else [f"not named within {seconds:.0f} s: {job.said[-400:]}"]
    if others[0].is_alive() or others[0].exitcode == 0:
        problems.append(f"exit status {others[0].exitcode}")
    if stopped is not None and "has not been heard of" not in job.said:
        problems.append(f"does not say which rank is silent: {job.said[-400:]}")
    job.wait(0)
    return problems, seconds
