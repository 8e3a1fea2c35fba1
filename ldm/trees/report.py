"""The report on experts: trees of several seeds are grown and judged, each step a process of its own, and all shown."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ldm.config import compose, instantiate, named_in_step, overriding, recipe_of
from ldm.config.numbers import check_least, check_seeds
from ldm.device import choose
from ldm.errors import UserError
from ldm.evaluation.yardsticks import check_yardsticks
from ldm.files import read_json
from ldm.launching import Job
from ldm.launching.chain import Chain, Step, check_chain
from ldm.launching.work import finish
from ldm.results.measured_under import shards_of
from ldm.results.results import Results
from ldm.training.loggers import log_summary
from ldm.trees.findings import difference, sampled
from ldm.trees.growing import steps, tell
from ldm.trees.judge import ENSEMBLE, JUDGED, check_systems, judge
from ldm.trees.report_page import FIGURES, write_page
from ldm.trees.results import Part, results_at
from ldm.trees.schedule import Schedule, read_schedule
from ldm.trees.trainings import Growth, is_done

Tree = dict[str, Any]
SAMPLED = ("sampling_seeds", "scales", "num_samples", "num_reference", "num_held_out")


def experts_report(tree: Tree) -> Path | None:
    """Grow and judge the trees of `tree` (conf/experts_report.yaml). Returns the page, None if a training was stopped.

    Raises UserError for what could not be trained before anything is, and at the end for what failed.
    """
    _check(tree)
    schedules = {each.name: each for each in (read_schedule(n).scaled(tree["root_steps"]) for n in tree["schedules"])}
    if len(schedules) < len(tree["schedules"]):
        raise UserError(f"schedules={tree['schedules']}: two are called the same, and so would be their runs and rows")
    launch = instantiate(tree["launcher"], {}, "launcher")
    folder = Path(tree["runs_dir"]) / "experts"
    results = results_at(Path(tree["results"]) if tree["results"] else folder / "experts.csv")
    asked = [Part(name, seed) for seed in tree["seeds"] for name in schedules]
    left = results.left(asked, "trees", lambda part: settings_of(tree, schedules[part.schedule]), tree["train"])
    if left:
        check_yardsticks(tree)
    todo: dict[str, Step] = {}  # schedules may share a first stage
    for part in left:
        check_systems(schedules[part.schedule])
        todo |= {step.name: step for step in _steps(tree, schedules[part.schedule], part, results, folder)}
    return finish(
        Chain(list(todo.values()), launch, tree["jobs"]), folder, "judging experts into",
        {"experts.json": tree}, results.said(asked, "trees"),
        lambda: _show(tree, folder, list(schedules.values()), results) if results.rows else None,
    )  # fmt: skip


def _show(tree: Tree, folder: Path, schedules: list[Schedule], results: Results[Part]) -> Path:
    page = write_page(folder, schedules, results, tree["seeds"])
    _log(tree, folder, schedules, results)
    return page


def _log(tree: Tree, folder: Path, schedules: list[Schedule], results: Results[Part]) -> None:
    """Figures, and the differences of the experts to the control, as a W&B run of their own."""
    metrics: dict[str, float] = {}
    pictures: dict[str, Path] = {}
    for schedule in schedules:
        rows = [row for row in results.rows if row["schedule"] == schedule.name and row["seed"] in tree["seeds"]]
        for quantity in [*sampled(rows), "loss"]:
            found = difference(rows, ENSEMBLE, "control", quantity)
            if found is not None:
                metrics[f"{schedule.name}/{ENSEMBLE} - control/{quantity}"] = found.mean
        drawn = {name: folder / schedule.name / f"{name}.png" for name in FIGURES}
        pictures |= {f"{schedule.name}/{name}": path for name, path in drawn.items() if path.exists()}
    log_summary(folder, "experts", tree["logger"]["project"], tree["logger"]["mode"], metrics, {}, pictures)


def growth_of(tree: Tree, schedule: Schedule, seed: int) -> Growth:
    """The tree of a schedule, already scaled, with a training seed."""
    words = [f"schedule={schedule.name}", f"seed={seed}", f"name=experts-{schedule.name}-seed{seed}"]
    words += [f"runs_dir={tree['runs_dir']}", f"jobs={tree['jobs']}"]
    own = compose("grow_tree", words)
    more = {"logger": tree["logger"], "launcher": tree["launcher"], "overrides": _overrides(tree, schedule)}
    return Growth({**own, **more, "first_stage": str(first_stage_run(tree, schedule, seed))}, schedule)


def first_stage_run(tree: Tree, schedule: Schedule, seed: int) -> Path:
    """The run of the first stage of a tree; schedules that name the same one share it."""
    return Path(tree["runs_dir"]) / f"experts-{str(schedule.first_stage).replace('/', '-')}-seed{seed}"


def settings_of(tree: Tree, schedule: Schedule) -> str:
    """What a tree's numbers depend on, as text: rows of other settings are not this report's.

    With what shards= holds, where a schedule is trained on them.
    """
    facts = {key: tree[key] for key in (*SAMPLED, "overrides", "first_stage_overrides")} | {"metric": tree["metric"]}
    facts |= {"rows": {row.name: row.steps for row in schedule.rows}, "tree": schedule.recipe}
    used = (schedule.experiment, schedule.branch_experiment, schedule.first_stage)
    facts |= {"recipes": {name: recipe_of(name) for name in used if name}}
    own = shards_of(tree["shards"]) if schedule.experiment and _unnamed(schedule.experiment) else {}
    return json.dumps({**facts, **own}, sort_keys=True)


def _check(tree: Tree) -> None:
    if not tree["schedules"]:
        raise UserError("schedules=[]: has to be names of conf/tree such as fig7_emoji, or files")
    check_chain(tree, "experts_report", "the report")
    choose(tree["device"])
    check_least(tree, {"num_samples": 10, "num_reference": 10, "num_held_out": 2, "batch_size": 1})
    check_seeds(tree)
    check_seeds(tree, "sampling_seeds")
    scales = tree["scales"]
    if not scales or not all(type(scale) in (int, float) and math.isfinite(scale) for scale in scales):
        raise UserError(f"scales={scales}: a list of guidance scales, which are numbers")


def _overrides(tree: Tree, schedule: Schedule) -> str:
    """For every training of a schedule, with its data where its experiment names none."""
    return " ".join([*_data(tree, schedule.experiment), tree["overrides"]])


def _data(tree: Tree, experiment: str | None) -> list[str]:
    if experiment is None:
        raise UserError("schedules: a schedule of the report names its experiment")
    if not _unnamed(experiment):
        return []
    if tree["shards"] is None:
        raise UserError(f"shards: experiment={experiment} names no data; give a folder with train-*.tar")
    folder = Path(tree["shards"])
    for split in ("train", "validation"):
        if not list(folder.glob(f"{split}-*.tar")):
            raise UserError(f"shards={folder}: has no {split}-*.tar")
    return [f"data.{split}={folder / split}-*.tar" for split in ("train", "validation")]


def _unnamed(experiment: str) -> bool:
    """Whether an experiment leaves it to shards= what it is trained on."""
    return compose("config", [f"experiment={experiment}"], complete=False)["data"]["train"] == "???"


def _steps(tree: Tree, schedule: Schedule, part: Part, results: Results[Part], folder: Path) -> list[Step]:
    """First stage, rows and judgement of a tree; rows that begin anew wait for the first stage."""
    growth = growth_of(tree, schedule, part.seed)
    done = growth.check()
    stage = first_stage_run(tree, schedule, part.seed)
    found = []
    words = [f"experiment={schedule.first_stage}", f"run={stage.name}", f"runs_dir={stage.parent}", f"seed={part.seed}"]
    words += ["trainer.precision=auto", f"logger.mode={tree['logger']['mode']}", f"logger.group={growth.name}"]
    words += [*_data(tree, schedule.first_stage), *tree["first_stage_overrides"].split()]
    words = overriding(words)
    if not is_done(stage, compose("config", words), schedule.first_stage):
        found.append(Step(Job(stage.name, tuple(words))))
    for step in steps(growth, done):
        anew = not step.needs and found and found[0].name == stage.name and not _branches(step)
        found.append(replace(step, needs=(stage.name,)) if anew else step)
    trained = tuple(step.name for step in found)
    words = [f"stage={schedule.name}", f"seed={part.seed}", f"tree={folder / 'experts.json'}"]
    words += [f"device={tree['device']}"]
    keep = partial(_keep, tree, schedule, part, results, folder)
    return [*found, Step(Job(f"{growth.name}: judged", tuple(words), script="experts_report"), trained, keep)]


def _branches(step: Step) -> bool:
    return any(word.startswith("branch=") for word in step.job.words)


def _judged_in(folder: Path, part: Part) -> Path:
    """Where the judgement of a tree lies."""
    return folder / "judged" / part.name


def _keep(tree: Tree, schedule: Schedule, part: Part, results: Results[Part], folder: Path) -> None:
    """The judgement of a tree becomes rows."""
    settings = settings_of(tree, schedule)
    results.add(part, [{**row, "settings": settings} for row in read_json(_judged_in(folder, part) / JUDGED)["rows"]])
    print(f"{part.name}: judged, rows of {results.path}", flush=True)


def run_judge(tree: Tree, name: str, seed: int) -> None:
    """What the process of a judgement does: see ldm.trees.judge. UserError for a tree that the report has not."""
    schedule = named_in_step("stage", name, {each.name: each for each in map(read_schedule, tree["schedules"])})
    named_in_step("seed", str(seed), {str(each): each for each in tree["seeds"]})
    growth = growth_of(tree, schedule.scaled(tree["root_steps"]), seed)
    folder = Path(tree["runs_dir"]) / "experts"
    judge(tree, growth, tell(growth), _judged_in(folder, Part(name, seed)), settings_of(tree, growth.schedule))
