"""2 ranks, then 1, then 2 again: each step sees the same samples, with losses within 1e-6 of a run of one rank."""

import random
from pathlib import Path

from toys import curve

from chaoses.jobs import Job, keys, write_down_keys
from chaoses.outcome import Outcome
from chaoses.toy_runs import MAX_STEPS, ToyRuns

GOAL = "2 -> 1 -> 2 ranks: the same samples in each step, losses within 1e-6"
RUNS = 10
CLOSE = 1e-6
# No dropout, and none of Adam's first steps, which are the gradient's sign and amplify a difference in the last bit.
PLAIN = ("network.dropout=0.0", "optimizer.eps=0.1", "callback.metrics.every_steps=1")


def run(runs: int, rng: random.Random, folder: Path) -> Outcome:
    """Changed at steps that are drawn, with and without accumulation."""
    outcome, toys, largest = Outcome(), ToyRuns(folder), 0.0
    for number in range(runs):
        first, second = sorted(rng.sample(range(1, MAX_STEPS), 2))
        more = (*PLAIN, f"accumulation={rng.choice((1, 2))}")
        problems, difference = _trial(toys, f"run{number}", first, second, more)
        largest = max(largest, difference)
        outcome.note(f"2 ranks to step {first}, 1 to {second}, 2 to {MAX_STEPS}, {more[-1]}", problems)
    outcome.facts.append(f"the largest difference of a loss is {largest:.1e}")
    return outcome


def _trial(toys: ToyRuns, name: str, first: int, second: int, more: tuple[str, ...]) -> tuple[list[str], float]:
    whole, whole_keys = toys.whole("diffusion", 1, *more)
    noted = toys.folder / f"{name}-keys"
    for ranks, until in ((2, first), (1, second), (2, MAX_STEPS)):
        arguments = toys.arguments("diffusion", name, *more, f"max_steps={until}")
        job = Job(arguments, toys.folder / f"{name}.txt", ranks, prepare=lambda: write_down_keys(noted))
        statuses = job.wait()
        if any(statuses):
            return [f"{ranks} ranks to step {until} ended with {statuses}: {job.said[-300:]}"], 0.0
    problems = [] if _by_step(keys(noted)) == _by_step(whole_keys) else ["the samples of its steps differ"]
    losses = curve(toys.folder / name), curve(whole)
    difference = max(abs(losses[0][step] - losses[1][step]) for step in losses[1])
    if difference > CLOSE:
        problems.append(f"a loss differs by {difference:.1e}")
    return problems, difference


def _by_step(found: dict[tuple[int, int, int], set[tuple[str, ...]]]) -> dict[int, list[str]]:
    """step -> all samples that it saw, in any order."""
    steps: dict[int, list[str]] = {}
    for (step, _, _), seen in found.items():
        steps[step] = sorted([*steps.get(step, []), *(name for names in seen for name in names)])
    return steps
