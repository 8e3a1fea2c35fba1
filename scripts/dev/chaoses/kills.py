"""Kill -9 at a random moment, twice, then the same command to the end: not a bit may differ from the uninterrupted run.

One or two ranks (DDP or FSDP), workers that change between the starts, checkpoints written at once or meanwhile,
accumulation, the middle of an epoch; losses, learning rates, samples of each step, weights, averages and optimizer are
compared. Half of the kills of two ranks hit only one.
"""

import random
import signal
import time
from pathlib import Path

from toys import differences

from chaoses.jobs import Job, keys, last_step, leftovers, write_down_keys
from chaoses.outcome import Outcome
from chaoses.toy_runs import KINDS, MAX_STEPS, ToyRuns

GOAL = "killed twice and started again, a run is bit-equal to the uninterrupted one"
RUNS = 50
LONGEST_AFTER_STEP = 0.15  # seconds from the start of a step to the kill: a step, a checkpoint, the conclusion


def run(runs: int, rng: random.Random, folder: Path) -> Outcome:
    """Kinds in turn, everything else drawn."""
    outcome, toys, hits = Outcome(), ToyRuns(folder), []
    for number in range(runs):
        kind, ranks, accumulation = KINDS[number % len(KINDS)], rng.choice((1, 2)), rng.choice((1, 2))
        sharded = ranks > 1 and kind != "autoencoder" and rng.random() < 0.5
        name = f"{number}-{kind}-{ranks}-ranks-{accumulation}-parts{'-sharded' if sharded else ''}"
        more = (f"accumulation={accumulation}", *(["trainer.strategy=fsdp"] if sharded else []))
        problems, steps = _trial(toys, name, kind, ranks, more, rng)
        hits += steps
        outcome.note(f"{name}, killed in steps {steps}", problems)
    outcome.facts.append(f"{len(hits)} kills, in steps {sorted(set(hits))}")
    return outcome


def _trial(
    toys: ToyRuns, name: str, kind: str, ranks: int, more: tuple[str, ...], rng: random.Random
) -> tuple[list[str], list[int]]:
    """(what is wrong, in which steps it was killed)."""
    noted, steps = toys.folder / f"{name}-keys", []
    whole, whole_keys = toys.whole(kind, ranks, *more)
    for _ in range(2):
        job = _start(toys, name, kind, ranks, more, noted, rng)
        aim = rng.randrange(max(last_step(noted), 0), MAX_STEPS)
        began = last_step(noted)
        job.wait_until(lambda aim=aim, began=began: last_step(noted) >= aim and last_step(noted) != began)
        time.sleep(rng.uniform(0, LONGEST_AFTER_STEP))
        victim = rng.randrange(ranks) if rng.random() < 0.5 else None
        job.signal(signal.SIGKILL, victim)
        statuses = job.wait(60)
        if -signal.SIGKILL in statuses:
            steps.append(last_step(noted))
        survivors = [status for rank, status in enumerate(statuses) if victim is not None and rank != victim]
        if -signal.SIGKILL in survivors:
            return [f"rank {1 - victim} waited for the killed one for a minute"], steps
        if 0 in survivors and last_step(noted) < MAX_STEPS - 1:
            return [f"rank {1 - victim} ended well while the other was killed"], steps
    job = _start(toys, name, kind, ranks, more, noted, rng)
    statuses = job.wait()
    if any(statuses):
        return [f"the last start ended with {statuses}: {job.said[-300:]}"], steps
    run = toys.folder / name
    problems = differences(whole, run, MAX_STEPS)
    if keys(noted) != whole_keys:
        problems.append("the samples of its steps differ")
    return problems + [f"{left} is left" for left in leftovers(run)], steps


def _start(
    toys: ToyRuns, name: str, kind: str, ranks: int, more: tuple[str, ...], noted: Path, rng: random.Random
) -> Job:
    own = (f"data.num_workers={rng.choice((0, 2))}", f"callback.checkpoint.background={rng.choice(('true', 'false'))}")
    arguments = toys.arguments(kind, name, *more, *own)
    return Job(arguments, toys.folder / f"{name}.txt", ranks, prepare=lambda: write_down_keys(noted))
