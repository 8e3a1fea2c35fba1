"""Trainings of equal time: how many steps a budget of device-seconds is, by a short trial, and when it is judged."""

import csv
import itertools
import shutil
import statistics
import threading
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from ldm.files import read_json, write_json
from ldm.launching import Job
from ldm.results.measured_under import training_of
from ldm.results.results import CellResults
from ldm.training.callbacks.device_seconds import NAME


class Budget:
    """How many steps take `device_seconds` of `tree`, by trials of `trial_steps`; ``steps.json`` in `folder` keeps it.

    The seeds of a training have the same; they share the settings on which it depends.
    """

    def __init__(self, tree: Mapping[str, Any], folder: Path, results: CellResults):
        self.seconds, self.trial_steps = tree["device_seconds"], tree["trial_steps"]
        self.path = folder / "steps.json"
        self.results = results
        self._trials: dict[str, threading.Lock] = {}
        self._keeping = threading.Lock()

    def steps(
        self, name: str, settings: str, run: Path, words_with: Callable[[list[str]], list[str]]
    ) -> Generator[Job, None, int]:
        """The steps of a training; before them the job of a trial beside `run`, unless they are known.

        `words_with(more)` are the training's own words and more.
        """
        training, trial = training_of(settings), run.with_name(f"{run.name}-trial")
        with self._trials.setdefault(name, threading.Lock()):
            found = self.known(name, training)
            if found is None:
                yield Job(trial.name, tuple(words_with(trial_words(trial.name, self.trial_steps))))
                found = self._keep(name, training, trial)
            return found

    def known(self, name: str, training: str | None) -> int | None:
        """The steps of a finished cell of the same training, or of its trial; None before there are any."""
        if training is None:
            return None
        rows = self.results.cells.rows
        finished = next((row["steps"] for row in rows if training_of(row.get("settings")) == training), None)
        kept = self._kept().get(name)
        own = kept["steps"] if isinstance(kept, dict) and kept["training"] == training else None
        return finished or own

    def _keep(self, name: str, training: str | None, trial: Path) -> int:
        steps = steps_within(trial, self.seconds)
        with self._keeping:
            write_json(self.path, {**self._kept(), name: {"steps": steps, "training": training}})
        shutil.rmtree(trial, ignore_errors=True)
        return steps

    def _kept(self) -> dict[str, Any]:
        return read_json(self.path) if self.path.exists() else {}


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
