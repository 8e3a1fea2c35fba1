"""The sweep over the downsampling factor (arXiv 2112.10752, section 4.1): equal networks, equal budgets, any f.

Each cell is a chain of fresh processes: first stage, cache of its latents, diffusion model, measurement. Finished cells
are rows of a CSV file, from which the command goes on; whatever a cell has done of its chain is not done again.
"""

import shutil
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

from ldm.config import instantiate
from ldm.config.numbers import check_above_zero, check_guidance, check_least
from ldm.device import choose
from ldm.errors import UserError
from ldm.evaluation.yardsticks import check_yardsticks
from ldm.launching import Job
from ldm.launching.chain import check_chain
from ldm.launching.sequences import Sequences, stage_job
from ldm.launching.work import finish
from ldm.results.measured import is_measured, read_measured
from ldm.results.results import CellResults
from ldm.sweep.budget import Budget, length_words
from ldm.sweep.cells import (
    Cell,
    Places,
    cells,
    check,
    diffusion_tree,
    diffusion_words,
    first_stage_words,
    settings_of,
)
from ldm.sweep.page import write_page
from ldm.sweep.results import results_at

Tree = dict[str, Any]
BUDGETS = ("steps", "device_seconds")


def sweep_f(tree: Tree) -> Path | None:
    """Run the sweep of `tree` (conf/sweep_f.yaml). Returns the page, None if a training was stopped and saved.

    Raises UserError for any cell that could not train before one does, and at the end for those that failed.
    """
    asked, folder = cells(tree), Places(tree).folder
    _check_keys(tree)
    launch = instantiate(tree["launcher"], {}, "launcher")
    results = results_at(Path(tree["results"]) if tree["results"] else folder / "cells.csv")
    left = results.cells.left(asked, "cells", partial(settings_of, tree), tree["train"])
    check(tree, left)
    if left:
        check_yardsticks(tree)
    sweep = Sweep(tree, results)
    return finish(
        Sequences(left, sweep.jobs_of, sweep.keep, launch, tree["jobs"]), folder, "sweeping into",
        {"sweep.json": tree}, results.cells.said(asked, "cells"),
        lambda: write_page(tree, folder, asked, results) if results.cells.count(asked) else None,
    )  # fmt: skip


def _check_keys(tree: Tree) -> None:
    choose(tree["device"])
    if tree["budget"] not in BUDGETS:
        raise UserError(f"budget={tree['budget']}: choose one of {', '.join(BUDGETS)}")
    if tree["budget"] == "device_seconds":
        check_above_zero(tree, "device_seconds")
    check_guidance(tree)
    check_least(tree, {"moments": 1, "trial_steps": 20, "num_samples": 4, "num_steps": 1})
    check_chain(tree, "sweep_f", "the sweep")
    counts = tree["sampling_steps"]
    if any(type(count) is not int or count < 1 for count in counts):
        raise UserError(f"sampling_steps={counts}: a list of whole numbers of at least 1")


class Sweep:
    """What is to be done for the cells of a sweep."""

    def __init__(self, tree: Tree, results: CellResults[Cell]):
        self.tree = tree
        self.places = Places(tree)
        self.results = results
        self.budget = Budget(tree, self.places.folder, results)

    def jobs_of(self, cell: Cell) -> Generator[Job]:
        """The jobs of a cell one after the other; what a later one needs of an earlier is read when it is asked for."""
        settings, run = settings_of(self.tree, cell), self.places.diffusion(cell)
        if is_measured(self.places.measured(cell), settings):
            return
        if cell.f > 1:
            yield Job(self.places.first_stage(cell).name, tuple(first_stage_words(self.tree, cell)))
            if self.tree["cache"]:
                yield self._stage("encode", cell)
        words_with = partial(diffusion_words, self.tree, cell)
        if self.tree["budget"] == "steps":
            steps = diffusion_tree(self.tree, cell)["max_steps"]
        else:
            steps = yield from self.budget.steps(cell.model, settings, run, words_with)
        yield Job(run.name, tuple(words_with(length_words(self.tree["moments"], steps))))
        yield self._stage("measure", cell)

    def keep(self, cell: Cell) -> None:
        """A measured cell becomes a row."""
        row, points = read_measured(self.places.measured(cell))
        self.results.add(cell, {"settings": settings_of(self.tree, cell), **row}, points)
        shutil.rmtree(self.places.cache(cell), ignore_errors=True)
        print(f"{cell.name}: finished, a row of {self.results.cells.path}", flush=True)

    def _stage(self, stage: str, cell: Cell) -> Job:
        return stage_job(stage, cell.name, self.places.folder / "sweep.json", self.tree["device"], "sweep_f")
