"""NaN in the loss, in the gradients, on all ranks or one: the weights stay finite, the steps are counted, and no
checkpoint that holds a NaN is ever taken for good."""

import random
from collections.abc import Callable
from pathlib import Path

import torch
from toys import curve, state

from chaoses.jobs import Job
from chaoses.outcome import Outcome
from chaoses.toy_runs import MAX_STEPS, ToyRuns
from ldm.checkpoint import resume
from ldm.checkpoint.finite import not_finite
from ldm.training.diffusion import DiffusionTask

GOAL = "NaN in loss, gradients or one rank: weights stay finite, counted, no such checkpoint is good"
RUNS = 24


def in_loss(task: DiffusionTask, loss: torch.Tensor) -> torch.Tensor:
    """The loss itself."""
    return loss * float("nan")


def in_gradients(task: DiffusionTask, loss: torch.Tensor) -> torch.Tensor:
    """An infinity that first appears in backward: the loss is finite."""
    parameter = next(parameter for parameter in task.trained.parameters() if parameter.requires_grad)
    return loss + (parameter.flatten()[0] * 0).abs().sqrt().sum()


def in_weights(task: DiffusionTask, loss: torch.Tensor) -> torch.Tensor:
    """A weight, as after a memory fault: nothing can be saved any more."""
    with torch.no_grad():
        next(task.trained.parameters()).view(-1)[0] = float("nan")
    return loss


WAYS: tuple[Callable[[DiffusionTask, torch.Tensor], torch.Tensor], ...] = (in_loss, in_gradients, in_weights)


def run(runs: int, rng: random.Random, folder: Path) -> Outcome:
    """Ways in turn, on one rank, on both of two, or on one of two."""
    outcome, toys = Outcome(), ToyRuns(folder)
    for number in range(runs):
        way, ranks = WAYS[number % len(WAYS)], rng.choice((1, 2))
        hit = rng.randrange(ranks) if rng.random() < 0.5 else None
        steps = sorted(rng.sample(range(MAX_STEPS), rng.randint(1, 4)))
        where = "all ranks" if hit is None else f"rank {hit}"
        name = f"{number}-{way.__name__}"
        outcome.note(f"{name} of {where} of {ranks} in {steps}", _trial(toys, name, way, ranks, hit, steps))
    return outcome


def _trial(toys: ToyRuns, name: str, way: Callable, ranks: int, hit: int | None, steps: list[int]) -> list[str]:
    def prepare() -> None:
        original = DiffusionTask.training_step

        def training_step(task: DiffusionTask, batch: dict, batch_index: int) -> torch.Tensor:
            loss = original(task, batch, batch_index)
            here = task.step in steps and hit in (None, task.global_rank)
            return way(task, loss) if here else loss

        DiffusionTask.training_step = training_step

    arguments = toys.arguments("diffusion", name, "callback.metrics.every_steps=1")
    job = Job(arguments, toys.folder / f"{name}.txt", ranks, prepare)
    statuses, run = job.wait(), toys.folder / name
    problems = []
    for checkpoint in run.glob("checkpoints/step_*.ckpt"):
        found = resume.load(checkpoint) if resume.damage(checkpoint) is None else None
        if found and not_finite(found):
            problems.append(f"{checkpoint.name} is taken for good, and {not_finite(found)} is not finite")
    if way is in_weights:
        if 0 in statuses:
            problems.append(f"exit statuses {statuses}")
        if "not finite" not in job.said and "were not finite" not in job.said:
            problems.append(f"does not say what is wrong: {job.said[-300:]}")
        return problems
    if any(statuses):
        return [*problems, f"exit statuses {statuses}: {job.said[-300:]}"]
    if not_finite(state(run, MAX_STEPS)):
        problems.append(f"{not_finite(state(run, MAX_STEPS))} is not finite at the end")
    counted = curve(run, "train/skipped_steps")[MAX_STEPS]
    if counted != len(steps):
        problems.append(f"{len(steps)} steps were spoilt, {counted:.0f} are counted")
    return problems
