"""The report on the tasks: what is missing is trained and judged, each step a process of its own, and all shown."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from ldm.asked import check_folder
from ldm.config import compose, instantiate, recipe_of
from ldm.config.numbers import check_least
from ldm.device import choose
from ldm.errors import UserError
from ldm.files import read_json
from ldm.launching import Job
from ldm.launching.chain import Chain, Step, check_chain
from ldm.launching.work import finish
from ldm.results.measured_under import shards_of
from ldm.results.results import Results
from ldm.tasks.checks import check_judging
from ldm.tasks.judges import VERSIONS
from ldm.tasks.judging import JUDGED, SHEET
from ldm.tasks.page import write_page
from ldm.tasks.results import results_at, sheet_of
from ldm.tasks.trainings import (
    FASHION,
    TASKS,
    TRAININGS,
    Part,
    Places,
    needed,
    parts,
    steps_of,
    words_of,
)

Tree = dict[str, Any]


def tasks_report(tree: Tree) -> Path | None:
    """Train and judge the tasks of `tree` (conf/tasks_report.yaml). Returns the page, None if a training was stopped.

    Raises UserError for what could not be trained before anything is, and at the end for what failed.
    """
    asked, folder = parts(tree), Places(tree).folder
    _check_keys(tree, asked)
    launch = instantiate(tree["launcher"], {}, "launcher")
    results = results_at(Path(tree["results"]) if tree["results"] else folder / "tasks.csv")
    left = results.left(asked, "tasks", partial(settings_of, tree), tree["train"])
    if tree["train"]:
        check_judging(tree, left)
    return finish(
        Chain(_steps(tree, left, results), launch, tree["jobs"]), folder, "judging tasks into",
        {"tasks.json": tree}, results.said(asked, "tasks"),
        lambda: write_page(folder, asked, results, tree["seeds"]) if results.rows else None,
    )  # fmt: skip


def settings_of(tree: Tree, part: Part) -> str:
    """What a part's numbers depend on, as text: rows of other settings are not this report's.

    Of each model its steps and its recipe, of the judge its version, and what fashion= holds where a model is trained
    on it.
    """
    keys = ("num_samples", "resamples", "overrides")
    trained = needed([part.task])
    own = {name: tree["overrides_of"].get(name) for name in trained if tree["overrides_of"].get(name)}
    facts = {key: tree[key] for key in keys} | {"metric": tree["metric"], "overrides_of": own}
    facts |= {"steps": {name: steps_of(tree, name) for name in trained}}
    facts |= {"recipes": {name: recipe_of(f"tasks/{name}") for name in trained}, "judge": VERSIONS[part.task]}
    facts |= shards_of(tree["fashion"]) if any(TRAININGS[name].images == FASHION for name in trained) else {}
    return json.dumps(facts, sort_keys=True)


def _check_keys(tree: Tree, asked: list[Part]) -> None:
    choose(tree["device"])
    check_chain(tree, "tasks_report", "the report")
    check_folder("runs_dir", tree["runs_dir"])
    check_least(tree, {"num_samples": 10, "batch_size": 1, "resamples": 1})
    trained = needed([part.task for part in asked])
    if any(TRAININGS[name].images == FASHION for name in trained):
        if tree["fashion"] is None:
            raise UserError("fashion: class_fashion needs fashion=FOLDER, the shards of scripts/make_idx_shards.py")
        for split in ("train", "validation"):
            if not list(Path(tree["fashion"]).glob(f"{split}-*.tar")):
                raise UserError(f"fashion={tree['fashion']}: has no {split}-*.tar")
    for name in trained:
        words = words_of(tree, name, 0)
        try:
            compose("config", words)
        except UserError as error:
            given = {"overrides": tree["overrides"], f"overrides_of.{name}": tree["overrides_of"].get(name)}
            said = " or ".join(key for key, text in given.items() if text)
            raise UserError(f"{said}: {error}" if said else str(error)) from error


def _steps(tree: Tree, missing: list[Part], results: Results[Part]) -> list[Step]:
    """What is to do, in the order in which it is best begun: first stages, then one task after the other."""
    found: dict[str, Step] = {}
    for seed in dict.fromkeys(part.seed for part in missing):
        own = [part for part in missing if part.seed == seed]
        stages = (TRAININGS[name].first_stage for name in needed([part.task for part in own]))
        for name in dict.fromkeys(name for name in stages if name):
            found |= _named(_training(tree, name, seed))
        for part in own:
            for name in needed([part.task]):
                found |= _named(_training(tree, name, seed))
            found |= _named(_judgement(tree, part, results))
    return list(found.values())


def _named(step: Step) -> dict[str, Step]:
    return {step.name: step}


def _training(tree: Tree, name: str, seed: int) -> Step:
    run, training = Places(tree).run(name, seed), TRAININGS[name]
    needs = (Places(tree).run(training.first_stage, seed).name,) if training.first_stage else ()
    return Step(Job(run.name, tuple(words_of(tree, name, seed))), needs)


def _judgement(tree: Tree, part: Part, results: Results[Part]) -> Step:
    places = Places(tree)
    words = ("stage=judge", f"task={part.task}", f"seed={part.seed}", f"tree={places.folder / 'tasks.json'}",
             f"device={tree['device']}")  # fmt: skip
    needs = tuple(places.run(name, part.seed).name for name in TASKS[part.task])
    job = Job(f"{part.name}: judged", words, script="tasks_report")
    return Step(job, needs, partial(_keep, tree, part, results))


def _keep(tree: Tree, part: Part, results: Results[Part]) -> None:
    """The judgement of a part becomes rows, and its sheet lies beside them."""
    folder = Places(tree).judged(part)
    results.path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / SHEET, sheet_of(results, part))
    settings = settings_of(tree, part)
    results.add(part, [{**row, "settings": settings} for row in read_json(folder / JUDGED)["rows"]])
    print(f"{part.name}: judged, rows of {results.path}", flush=True)
