"""The sweep over the downsampling factor (arXiv 2112.10752, section 4.1): equal networks, equal budgets, any f.

Each cell is a chain of fresh processes: first stage, cache of its latents, diffusion model, measurement. Finished cells
are rows of a CSV file, from which the command goes on; whatever a cell has done of its chain is not done again.
"""

import math
import shutil
import threading
from collections.abc import Generator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from ldm.config import instantiate
from ldm.data.paths import expand
from ldm.device import choose
from ldm.errors import UserError
from ldm.evaluation.stored_reference import facts_of, is_stored
from ldm.files import read_json, write_json
from ldm.holding import held
from ldm.launching import FINISHED, STOPPED, Job, Launcher
from ldm.launching.local import passing_on
from ldm.launching.pool import Pool
from ldm.sweep.budget import length_words, steps_within, trial_words
from ldm.sweep.cells import (
    Cell,
    Places,
    cells,
    check,
    diffusion_tree,
    diffusion_words,
    first_stage_words,
    settings_of,
    training_of,
)
from ldm.sweep.measured_under import same_settings
from ldm.sweep.page import write_page
from ldm.sweep.results import Results
from ldm.sweep.stage import MEASURED

Tree = dict[str, Any]
BUDGETS = ("steps", "device_seconds")


def sweep_f(tree: Tree) -> Path | None:
    """Run the sweep of `tree` (conf/sweep_f.yaml). Returns its folder, None if a training was stopped and saved.

    Raises UserError for any cell that could not train before one does, and at the end for those that failed.
    """
    asked, places = cells(tree), Places(tree)
    _check_keys(tree)
    launch = instantiate(tree["launcher"], {}, "launcher")
    results = Results(Path(tree["results"]) if tree["results"] else places.folder / "cells.csv")
    for cell in asked:
        results.check(cell, settings_of(tree, cell))
    missing = [cell for cell in asked if results.find(cell) is None]
    if not tree["train"] and len(missing) == len(asked):
        raise UserError(f"train=false: none of the {len(asked)} cells is in {results.path}")
    check(tree, missing)
    if missing and tree["train"]:
        _check_measurement(tree)
    with held(places.folder, "sweeping into"):
        write_json(places.folder / "sweep.json", tree)
        print(f"{len(asked)} cells, {len(asked) - len(missing)} of them in {results.path}", flush=True)
        sweep = Sweep(tree, places, launch, results)
        with passing_on():
            stopped = sweep.run(missing if tree["train"] else [])
        if any(results.find(cell) for cell in asked):
            write_page(tree, places.folder, asked, results)
        if sweep.failed:
            raise UserError(f"these cells failed, their messages are above: {', '.join(sweep.failed)}")
    return None if stopped else places.folder


def _check_keys(tree: Tree) -> None:
    choose(tree["device"])
    if tree["budget"] not in BUDGETS:
        raise UserError(f"budget={tree['budget']}: choose one of {', '.join(BUDGETS)}")
    if tree["budget"] == "device_seconds" and not 0 < tree["device_seconds"] < math.inf:
        raise UserError(f"device_seconds={tree['device_seconds']}: must be above 0, and a number")
    if not math.isfinite(tree["scale"]):
        raise UserError(f"scale={tree['scale']}: of guidance, must be a number")
    for key, least in {"jobs": 1, "moments": 1, "trial_steps": 20, "num_samples": 4, "num_steps": 1}.items():
        if tree[key] < least:
            raise UserError(f"{key}={tree[key]}: must be at least {least}")
    counts = tree["sampling_steps"]
    if any(type(count) is not int or count < 1 for count in counts):
        raise UserError(f"sampling_steps={counts}: a list of whole numbers of at least 1")
    if tree["launcher"].get("wait") is False:
        raise UserError("launcher.wait=false: what follows needs the trained runs; set it to true")


def _check_measurement(tree: Tree) -> None:
    """Raises ValueError for files that measuring would miss, hours later."""
    against, weights = tree["reference"], tree["metric"].get("path")
    if is_stored(against):
        facts_of(against)
    elif against is not None:
        expand(against, "reference")
    if weights is not None and not Path(weights).expanduser().is_file():
        raise UserError(f"metric.path={weights}: no such file")


class Sweep:
    """The cells of a sweep under way, `jobs` of them at once."""

    def __init__(self, tree: Tree, places: Places, launch: Launcher, results: Results):
        self.tree = tree
        self.places = places
        self.pool = Pool(launch, tree["jobs"])
        self.results = results
        self.failed: list[str] = []
        self._trials: dict[str, threading.Lock] = {}
        self._steps = threading.Lock()

    def run(self, missing: list[Cell]) -> bool:
        """Finish the `missing` cells. Returns whether a training was stopped; a cell that fails stops no other."""
        self._trials = {cell.model: threading.Lock() for cell in missing}
        return self.pool.run([partial(self._cell, cell) for cell in missing])

    def _cell(self, cell: Cell) -> None:
        measured = self.places.measured(cell) / MEASURED
        with closing(self._chain(cell)) as chain:
            for job in chain:
                if self.pool.stops or not self._done(job, cell):
                    return
        if self.pool.stops:
            return
        found = read_json(measured)
        self.results.add(cell, {"settings": settings_of(self.tree, cell), **found["row"]}, found["points"])
        shutil.rmtree(self.places.cache(cell), ignore_errors=True)
        print(f"{cell.name}: finished, a row of {self.results.path}", flush=True)

    def _chain(self, cell: Cell) -> Generator[Job]:
        """The jobs of a cell one after the other; what a later one needs of an earlier is read when it is asked for."""
        if self._measured(cell):
            return
        if cell.f > 1:
            yield Job(self.places.first_stage(cell).name, tuple(first_stage_words(self.tree, cell)))
            if self.tree["cache"]:
                yield self._stage("encode", cell)
        with self._trials[cell.model]:
            steps = self._known_steps(cell)
            if steps is None:
                yield self._trial(cell)
                steps = self._keep_steps(cell)
        length = length_words(self.tree["moments"], steps)
        yield Job(self.places.diffusion(cell).name, tuple(diffusion_words(self.tree, cell, length)))
        yield self._stage("measure", cell)

    def _measured(self, cell: Cell) -> bool:
        """Whether the cell has been measured, and as this sweep would measure it."""
        path = self.places.measured(cell) / MEASURED
        return path.exists() and same_settings(read_json(path).get("settings"), settings_of(self.tree, cell))

    def _done(self, job: Job, cell: Cell) -> bool:
        """Run a job; whether it finished."""
        status = self.pool.do(job)
        if status not in (FINISHED, STOPPED):
            self.failed.append(cell.name)
        return status == FINISHED

    def _stage(self, stage: str, cell: Cell) -> Job:
        words = (f"stage={stage}", f"cell={cell.name}", f"tree={self.places.folder / 'sweep.json'}",
                 f"device={self.tree['device']}")  # fmt: skip
        return Job(f"{cell.name}: {stage}", words, script="sweep_f")

    # How many steps the budget is

    def _known_steps(self, cell: Cell) -> int | None:
        """Of the experiment, or of the budget where a cell of the same model has been measured."""
        if self.tree["budget"] == "steps":
            return diffusion_tree(self.tree, cell)["max_steps"]
        training = training_of(settings_of(self.tree, cell))
        kept = self._kept_steps().get(cell.model)
        own = kept["steps"] if isinstance(kept, dict) and kept["training"] == training else None
        return self.results.steps_of(cell.model, training) or own

    def _kept_steps(self) -> dict[str, Any]:
        """Of each model the steps that a trial has given, and the training that they are of."""
        path = self.places.folder / "steps.json"
        return read_json(path) if path.exists() else {}

    def _trial(self, cell: Cell) -> Job:
        """A short training whose steps are timed."""
        run = self._trial_run(cell)
        short = trial_words(run.name, self.tree["trial_steps"])
        return Job(run.name, tuple(diffusion_words(self.tree, cell, short)))

    def _trial_run(self, cell: Cell) -> Path:
        return self.places.runs / f"{self.places.diffusion(cell).name}-trial"

    def _keep_steps(self, cell: Cell) -> int:
        """The steps that take `device_seconds`."""
        run = self._trial_run(cell)
        steps = steps_within(run, self.tree["device_seconds"])
        with self._steps:
            found = {"steps": steps, "training": training_of(settings_of(self.tree, cell))}
            write_json(self.places.folder / "steps.json", {**self._kept_steps(), cell.model: found})
        shutil.rmtree(run, ignore_errors=True)
        return steps
