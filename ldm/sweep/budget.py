"""Trainings of equal time: how many steps a budget of device-seconds is, by a short trial, and when it is judged."""

import csv
import itertools
import statistics
from pathlib import Path

from ldm.training.callbacks.device_seconds import NAME


def trial_words(run: str, count: int) -> list[str]:
    """Of train.py, beside those of a training: the first `count` steps of it as the run `run`, timed by fives."""
    short = [f"run={run}", f"max_steps={count}", "lr=constant", "lr.warmup_steps=0", "overwrite=true"]
    short += ["callback.device_seconds.every_steps=5", f"callback.checkpoint.every_steps={count}"]
    return [*short, "logger.mode=disabled"]


def steps_within(trial: Path, seconds: float) -> int:
    """The steps that take so many device-seconds: by the median of the fives of a trial's run but the first."""
    rows = logged(trial, NAME)
    costs = [(b - a) / (end - start) for (start, a), (end, b) in itertools.pairwise(rows)]
    return max(1, round(seconds / statistics.median(costs[1:] or costs)))


def every_of(moments: int, steps: int) -> int:
    """Every how many of `steps` a moment of the training is, at which quality is measured; the last step is one too."""
    return -(-steps // moments)


def length_words(moments: int, steps: int) -> list[str]:
    """Of train.py, for a training of that many steps, with weights kept at each of the moments."""
    every = every_of(moments, steps)
    checkpoint = [f"every_steps={every}", "keep_weights=1", f"keep_weights_every_steps={every}"]
    return [f"max_steps={steps}", *(f"callback.checkpoint.{word}" for word in checkpoint)]


def weights_at_moments(run: Path, moments: int, steps: int, kind: str = "ema") -> list[Path]:
    """The weights of one kind at the moments of a training of `steps`; others are of where it was stopped."""
    every = every_of(moments, steps)
    found = sorted((run / "weights").glob(f"step_*.{kind}.safetensors"), key=step_of)
    return [path for path in found if step_of(path) % every == 0 or step_of(path) == steps]


def step_of(weights: Path) -> int:
    """The step in the name of a file of weights."""
    return int(weights.name.partition(".")[0].removeprefix("step_"))


def logged(run: Path, name: str) -> list[tuple[int, float]]:
    """The rows (step, value) of one name in a run's metrics.csv."""
    with (run / "metrics.csv").open(newline="") as file:
        return [(int(row[0]), float(row[2])) for row in csv.reader(file) if row[1] == name]
