"""What the report on the tasks trains: experiments of conf/experiment/tasks, and what each needs first."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.config import added_words, compose, overriding
from ldm.config.numbers import check_seeds
from ldm.errors import UserError

Tree = dict[str, Any]
PLACES = ("run", "runs_dir", "seed")  # of a training, by which it is told from others
EMOJI, FASHION, CANVASES = "emoji", "fashion", "canvases"  # images: built in, of fashion=, made of those built in


@dataclass(frozen=True)
class Training:
    """An experiment of conf/experiment/tasks on some `images`, on the latents of `first_stage` if there is one."""

    images: str
    first_stage: str | None = None


TRAININGS: Mapping[str, Training] = {
    "emoji_autoencoder": Training(EMOJI),
    "canvas_autoencoder": Training(CANVASES),
    "fashion_autoencoder": Training(FASHION),
    "unconditional": Training(EMOJI, "emoji_autoencoder"),
    "class_emoji": Training(EMOJI, "emoji_autoencoder"),
    "class_fashion": Training(FASHION, "fashion_autoencoder"),
    "text": Training(EMOJI, "emoji_autoencoder"),
    "layout": Training(CANVASES, "canvas_autoencoder"),
    "canvas_text": Training(CANVASES, "canvas_autoencoder"),
    "semantic_map": Training(CANVASES, "canvas_autoencoder"),
    "superres_x2": Training(CANVASES, "canvas_autoencoder"),
    "superres_x2_regression": Training(CANVASES, "canvas_autoencoder"),
    "superres_x2_pixel": Training(CANVASES),
    "superres_x4": Training(CANVASES, "canvas_autoencoder"),
    "superres_x4_regression": Training(CANVASES, "canvas_autoencoder"),
    "superres_x4_pixel": Training(CANVASES),
    "superres_x4_bsr": Training(CANVASES, "canvas_autoencoder"),
    "inpainting": Training(CANVASES, "canvas_autoencoder"),
}
# What a task's judge looks at, its own model first.
TASKS: Mapping[str, tuple[str, ...]] = {
    "unconditional": ("unconditional",),
    "class_emoji": ("class_emoji",),
    "class_fashion": ("class_fashion",),
    "text": ("text",),
    "layout": ("layout",),
    "painting": ("canvas_text",),
    "semantic_map": ("semantic_map",),
    "superres_x2": ("superres_x2", "superres_x2_regression", "superres_x2_pixel"),
    "superres_x4": ("superres_x4", "superres_x4_regression", "superres_x4_pixel"),
    "superres_x4_bsr": ("superres_x4_bsr", "superres_x4"),
    "inpainting": ("inpainting",),
    "image_to_image": ("unconditional", "text"),  # which were trained for none of it
}


@dataclass(frozen=True)
class Part:
    """One task with one seed, which is a first stage, models and their judgement."""

    task: str
    seed: int

    @property
    def name(self) -> str:
        """Such as layout-seed0."""
        return f"{self.task}-seed{self.seed}"


def parts(tree: Tree) -> list[Part]:
    """The parts of `tree` (conf/tasks_report.yaml), the first seed first. UserError for no or wrong ones."""
    tasks = tree["tasks"]
    if not tasks or any(task not in TASKS for task in tasks) or len(set(tasks)) < len(tasks):
        raise UserError(f"tasks={tasks}: a list of different ones of {', '.join(TASKS)}")
    check_seeds(tree)
    return [Part(task, seed) for seed in tree["seeds"] for task in tasks]


def needed(tasks: list[str]) -> list[str]:
    """The trainings of these tasks, each after its first stage."""
    own = [name for task in tasks for name in TASKS[task]]
    return list(dict.fromkeys(name for each in own for name in (TRAININGS[each].first_stage, each) if name))


class Places:
    """Where runs, made images and judgements of a report lie."""

    def __init__(self, tree: Tree):
        self.runs = Path(tree["runs_dir"])
        self.folder = self.runs / "tasks"

    def run(self, training: str, seed: int) -> Path:
        return self.runs / f"tasks-{training}-seed{seed}"

    def judged(self, part: Part) -> Path:
        return self.folder / "judged" / part.name


def words_of(tree: Tree, name: str, seed: int) -> list[str]:
    """Of train.py, for a training."""
    places, training = Places(tree), TRAININGS[name]
    run = places.run(name, seed)
    found = [f"experiment=tasks/{name}", f"run={run.name}", f"runs_dir={run.parent}", f"seed={seed}"]
    found += ["trainer.precision=auto", f"logger.mode={tree['logger']['mode']}"]
    found += [f"logger.project={tree['logger']['project']}", "logger.group=tasks"]
    if training.first_stage:
        found.append(f"first_stage={places.run(training.first_stage, seed)}")
    if training.images == FASHION:
        found += [f"data.{part}={Path(tree['fashion']) / part}-*.tar" for part in ("train", "validation")]
    shared = added_words(tree["overrides"], "overrides", PLACES)
    own = added_words(tree["overrides_of"].get(name), f"overrides_of.{name}", PLACES)
    return overriding([*found, *shared, *own])


def steps_of(tree: Tree, name: str) -> int:
    """How long a training is."""
    return compose("config", words_of(tree, name, 0))["max_steps"]
