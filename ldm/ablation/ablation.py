"""An ablation under way: one first stage and cache for all, then each cell a chain of fresh processes of equal time.

Finished cells are rows of a CSV file, from which the command goes on; whatever a cell has done of its chain is not done
again, but for a peer's training, which begins anew.
"""

import math
import threading
from collections.abc import Generator
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ldm.ablation.cells import Cell, Places, cell_words, cells, check, first_stage_words, settings_of, training_of
from ldm.ablation.page import write_page
from ldm.ablation.plan import Plan, read_plan
from ldm.ablation.results import Results
from ldm.ablation.stage import MEASURED
from ldm.config import instantiate
from ldm.data.paths import expand
from ldm.device import choose
from ldm.errors import UserError
from ldm.evaluation.stored_reference import facts_of, is_stored
from ldm.files import read_json, write_json
from ldm.holding import held
from ldm.installed import IN_CHECKOUT
from ldm.launching import FINISHED, STOPPED, Job, Launcher
from ldm.launching.chain import check_chain
from ldm.launching.local import passing_on
from ldm.launching.pool import Pool
from ldm.sweep.budget import length_words, steps_within, trial_words

Tree = dict[str, Any]
PEERS = "dev/diffusers_loop"  # the script that trains and measures a peer


def ablation(tree: Tree) -> Path | None:
    """Run the ablation of `tree` (conf/ablation.yaml). Returns its folder, None if a training was stopped and saved.

    Raises UserError for any row that could not train before one does, and at the end for the cells that failed.
    """
    plan = read_plan(tree["plan"])
    asked, places = cells(tree, plan), Places(tree, plan)
    _check_keys(tree)
    launch = instantiate(tree["launcher"], {}, "launcher")
    results = Results(Path(tree["results"]) if tree["results"] else places.folder / "cells.csv")
    for cell in asked:
        results.check(cell, settings_of(tree, plan, cell))
    missing = [cell for cell in asked if results.find(cell) is None]
    if not tree["train"] and len(missing) == len(asked):
        raise UserError(f"train=false: none of the {len(asked)} cells is in {results.path}")
    if missing and tree["train"]:
        _check_peers(plan, missing)
        check(tree, plan, missing)
    with held(places.folder, "measuring an ablation into"):
        write_json(places.folder / "ablation.json", tree)
        print(f"{len(asked)} cells, {len(asked) - len(missing)} of them in {results.path}", flush=True)
        work = Ablation(tree, plan, launch, results)
        with passing_on():
            stopped = work.run(missing if tree["train"] else [])
        if any(results.find(cell) for cell in asked):
            write_page(tree, plan, places.folder, asked, results)
        if work.failed and not stopped:
            raise UserError(f"these failed, their messages are above: {', '.join(work.failed)}")
    return None if stopped else places.folder


def _check_keys(tree: Tree) -> None:
    choose(tree["device"])
    check_chain(tree, "ablation", "the ablation")
    if tree.get("metric") is None:
        raise UserError("metric=null: the ablation needs one; leave it out for that of conf/ablation.yaml")
    if not 0 < tree["device_seconds"] < math.inf:
        raise UserError(f"device_seconds={tree['device_seconds']}: must be above 0, and a number")
    if not math.isfinite(tree["scale"]):
        raise UserError(f"scale={tree['scale']}: of guidance, must be a number")
    for key, least in {"moments": 1, "trial_steps": 20, "num_samples": 4, "num_steps": 1}.items():
        if tree[key] < least:
            raise UserError(f"{key}={tree[key]}: must be at least {least}")
    against, weights = tree["reference"], tree["metric"].get("path")
    if is_stored(against):
        facts_of(against)
    elif against is not None:
        expand(against, "reference")
    if weights is not None and not Path(weights).expanduser().is_file():
        raise UserError(f"metric.path={weights}: no such file")


def _check_peers(plan: Plan, missing: list[Cell]) -> None:
    """Raises UserError where a peer is to be trained and diffusers is not there."""
    names = {peer.name for peer in plan.peers} & {cell.row for cell in missing}
    if names and not IN_CHECKOUT:
        raise UserError(f"rows: {min(names)} is trained by a script of a checkout; leave it out of rows= here")
    if names and find_spec("diffusers") is None:
        raise UserError(f"rows: {min(names)} needs diffusers: pip install diffusers, or leave it out of rows=")


class Ablation:
    """The cells of an ablation under way, `jobs` of them at once."""

    def __init__(self, tree: Tree, plan: Plan, launch: Launcher, results: Results):
        self.tree = tree
        self.plan = plan
        self.places = Places(tree, plan)
        self.pool = Pool(launch, tree["jobs"])
        self.results = results
        self.failed: list[str] = []
        self._trials = {name: threading.Lock() for name in plan.names}
        self._steps = threading.Lock()

    def run(self, missing: list[Cell]) -> bool:
        """Finish the `missing` cells, their latents first. Returns whether a training was stopped; a cell that fails
        stops no other.
        """
        if missing and not self._begun(missing[0]):
            return self.pool.stops
        return self.pool.run([partial(self._cell, cell) for cell in missing])

    def _begun(self, cell: Cell) -> bool:
        """Train the first stage and encode with it; whether all of that is there."""
        own = [] if self.tree["first_stage"] else [_trains(self.places.first_stage, first_stage_words(*self._given))]
        return all(self._done(job, job.name) for job in [*own, self._stage("encode", cell)])

    @property
    def _given(self) -> tuple[Tree, Plan]:
        return self.tree, self.plan

    def _cell(self, cell: Cell) -> None:
        with closing(self._chain(cell)) as chain:
            for job in chain:
                if self.pool.stops or not self._done(job, cell.name):
                    return
        if self.pool.stops:
            return
        found = read_json(self.places.measured(cell) / MEASURED)
        self.results.add(cell, found["row"], found["points"], settings_of(*self._given, cell))
        print(f"{cell.name}: finished, a row of {self.results.path}", flush=True)

    def _chain(self, cell: Cell) -> Generator[Job]:
        """The jobs of a cell one after the other; what a later one needs of an earlier is read when it is asked for."""
        if self._measured(cell):
            return
        if any(peer.name == cell.row for peer in self.plan.peers):
            yield self._stage("peer", cell, PEERS)
            return
        with self._trials[cell.row]:
            steps = self._known_steps(cell)
            if steps is None:
                yield self._trial(cell)
                steps = self._keep_steps(cell)
        more = length_words(self.tree["moments"], steps)
        yield _trains(self.places.run(cell), cell_words(*self._given, cell, more))
        yield self._stage("measure", cell)

    def _measured(self, cell: Cell) -> bool:
        """Whether the cell has been measured, and as this ablation would measure it."""
        path = self.places.measured(cell) / MEASURED
        return path.exists() and read_json(path).get("settings") == settings_of(*self._given, cell)

    def _done(self, job: Job, name: str) -> bool:
        """Run a job; whether it finished."""
        status = self.pool.do(job)
        if status not in (FINISHED, STOPPED):
            self.failed.append(name)
        return status == FINISHED

    def _stage(self, stage: str, cell: Cell, script: str = "ablation") -> Job:
        words = (f"stage={stage}", f"cell={cell.name}", f"tree={self.places.folder / 'ablation.json'}",
                 f"device={self.tree['device']}")  # fmt: skip
        return Job(f"{cell.name}: {stage}", words, script)

    # How many steps the budget is

    def _known_steps(self, cell: Cell) -> int | None:
        """Of a trial, or of a cell of the same row that has been measured."""
        training = training_of(settings_of(*self._given, cell))
        kept = self._kept_steps().get(cell.row, {})
        own = kept.get("steps") if kept.get("training") == training else None
        return self.results.steps_of(cell.row, training) or own

    def _kept_steps(self) -> dict[str, Any]:
        """Of each row the steps that a trial has given, and the training that they are of."""
        path = self.places.folder / "steps.json"
        return read_json(path) if path.exists() else {}

    def _trial_run(self, cell: Cell) -> Path:
        return self.places.runs / f"{self.places.run(cell).name}-trial"

    def _trial(self, cell: Cell) -> Job:
        run = self._trial_run(cell)
        return _trains(run, cell_words(*self._given, cell, trial_words(run.name, self.tree["trial_steps"])))

    def _keep_steps(self, cell: Cell) -> int:
        steps = steps_within(self._trial_run(cell), self.tree["device_seconds"])
        with self._steps:
            found = {"steps": steps, "training": training_of(settings_of(*self._given, cell))}
            write_json(self.places.folder / "steps.json", {**self._kept_steps(), cell.row: found})
        return steps


def _trains(run: Path, words: list[str]) -> Job:
    return Job(run.name, tuple(words))
