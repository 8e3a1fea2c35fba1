"""An ablation under way: one first stage and cache for all, then each cell a chain of fresh processes of equal time.

Finished cells are rows of a CSV file, from which the command goes on; whatever a cell has done of its chain is not done
again, but for a peer's training, which begins anew.
"""

from collections.abc import Generator, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ldm.ablation.cells import Cell, Places, cell_words, cells, check, first_stage_words, settings_of
from ldm.ablation.page import write_page
from ldm.ablation.plan import Plan, read_plan
from ldm.ablation.results import results_at
from ldm.config import instantiate
from ldm.config.numbers import check_above_zero, check_guidance, check_least
from ldm.device import choose
from ldm.errors import UserError
from ldm.evaluation.yardsticks import check_yardsticks
from ldm.installed import IN_CHECKOUT
from ldm.launching import Job, Launcher
from ldm.launching.chain import check_chain
from ldm.launching.sequences import Sequences, stage_job
from ldm.launching.work import finish
from ldm.results.measured import is_measured, read_measured
from ldm.results.results import CellResults
from ldm.sweep.budget import Budget, length_words

Tree = dict[str, Any]
PEERS = "dev/diffusers_loop"  # the script that trains and measures a peer


def ablation(tree: Tree) -> Path | None:
    """Run the ablation of `tree` (conf/ablation.yaml). Returns the page, None if a training was stopped and saved.

    Raises UserError for any row that could not train before one does, and at the end for the cells that failed.
    """
    plan = read_plan(tree["plan"])
    asked, folder = cells(tree, plan), Places(tree, plan).folder
    _check_keys(tree)
    launch = instantiate(tree["launcher"], {}, "launcher")
    results = results_at(Path(tree["results"]) if tree["results"] else folder / "cells.csv")
    left = results.cells.left(asked, "cells", partial(settings_of, tree, plan), tree["train"])
    if left:
        check_yardsticks(tree)
        _check_peers(plan, left)
        check(tree, plan, left)
    return finish(
        Ablation(tree, plan, launch, results, left), folder, "measuring an ablation into", {"ablation.json": tree},
        results.cells.said(asked, "cells"),
        lambda: write_page(tree, plan, folder, asked, results) if results.cells.count(asked) else None,
    )  # fmt: skip


def _check_keys(tree: Tree) -> None:
    choose(tree["device"])
    check_chain(tree, "ablation", "the ablation")
    check_above_zero(tree, "device_seconds")
    check_guidance(tree)
    check_least(tree, {"moments": 1, "trial_steps": 20, "num_samples": 4, "num_steps": 1})


def _check_peers(plan: Plan, missing: list[Cell]) -> None:
    """Raises UserError where a peer is to be trained and diffusers is not there."""
    names = {peer.name for peer in plan.peers} & {cell.row for cell in missing}
    if names and not IN_CHECKOUT:
        raise UserError(f"rows: {min(names)} is trained by a script of a checkout; leave it out of rows= here")
    if names and find_spec("diffusers") is None:
        raise UserError(f"rows: {min(names)} needs diffusers: pip install diffusers, or leave it out of rows=")


class Ablation:
    """The cells of an ablation that are `left`, `jobs` of them at once, and before them the latents of all."""

    def __init__(self, tree: Tree, plan: Plan, launch: Launcher, results: CellResults[Cell], left: list[Cell]):
        self.tree = tree
        self.plan = plan
        self.left = left
        self.places = Places(tree, plan)
        self.results = results
        self.budget = Budget(tree, self.places.folder, results)
        self.cells = Sequences(left, self.jobs_of, self.keep, launch, tree["jobs"])
        self.failed = self.cells.failed

    def run(self) -> bool:
        """Train the first stage, encode with it, finish the cells. Returns whether a training was stopped."""
        if not all(self.cells.do(job, job.name) for job in self._shared()):
            return self.cells.pool.stops
        return self.cells.run()

    def _shared(self) -> Iterator[Job]:
        """What all cells need, and before it what only a peer's own script can tell of it."""
        peers = {peer.name for peer in self.plan.peers}
        for cell in {cell.row: cell for cell in self.left if cell.row in peers}.values():
            yield self._stage("check", cell, PEERS)
        if self.left and not self.tree["first_stage"]:
            yield Job(self.places.first_stage.name, tuple(first_stage_words(self.tree, self.plan)))
        if self.left:
            yield self._stage("encode", self.left[0])

    def jobs_of(self, cell: Cell) -> Generator[Job]:
        """The jobs of a cell one after the other; what a later one needs of an earlier is read when it is asked for."""
        settings, run = settings_of(self.tree, self.plan, cell), self.places.run(cell)
        if is_measured(self.places.measured(cell), settings):
            return
        if any(peer.name == cell.row for peer in self.plan.peers):
            yield self._stage("peer", cell, PEERS)
            return
        words_with = partial(cell_words, self.tree, self.plan, cell)
        steps = yield from self.budget.steps(cell.row, settings, run, words_with)
        yield Job(run.name, tuple(words_with(length_words(self.tree["moments"], steps))))
        yield self._stage("measure", cell)

    def keep(self, cell: Cell) -> None:
        """A measured cell becomes a row, and its moments too."""
        settings = {"settings": settings_of(self.tree, self.plan, cell)}
        row, points = read_measured(self.places.measured(cell))
        self.results.add(cell, {**row, **settings}, [{**point, **settings} for point in points])
        print(f"{cell.name}: finished, a row of {self.results.cells.path}", flush=True)

    def _stage(self, stage: str, cell: Cell, script: str = "ablation") -> Job:
        return stage_job(stage, cell.name, self.places.folder / "ablation.json", self.tree["device"], script)
