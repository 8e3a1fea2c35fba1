"""The steps of the report on eDiff-I's figures: which command makes each, of what, and where its pictures lie."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.config import added_words, compose, overriding
from ldm.evaluation.stand_ins import NOTE

Tree = dict[str, Any]
EXPERIMENT = "ediffi/conditions_tiny"
SCHEDULE = "fig7_emoji"
STAND_INS = (
    "Its encoders are stand-ins: MiniLM for T5, a small CLIP of texts, EfficientNet's features for CLIP's of images."
)
TRAINED = " Captions are those that it was trained on: of others it knows little."
PLACES = ("out", "run", "runs_dir")  # of what a step makes
# What each part needs before it, in the order in which that is begun.
PARTS = {
    "attention": ("stand_in_clip", "cache", "model"),
    "switch": ("stand_in_clip", "cache", "model"),
    "conditions": ("stand_in_clip", "cache", "model"),
    "style": ("stand_in_clip", "cache", "model"),
    "cost": ("stand_in_clip", "cache", "model"),
    "painting": (),
    "experts": (),
}


@dataclass(frozen=True)
class Work:
    """A step: `script` with `words`, done where `marker` is there (None: it goes on by itself, and is asked each time).

    A step with a `title` has a section of the page.
    """

    name: str
    script: str
    words: tuple[str, ...]
    marker: Path | None
    needs: tuple[str, ...] = ()
    title: str = ""
    intro: str = ""
    shown: Callable[[], list[Path]] = list

    def check(self) -> None:
        """Raises UserError for words that its command would refuse."""
        compose("config" if self.script == "train" else self.script, list(self.words))

    def is_done(self) -> bool:
        return self.marker is not None and self.marker.exists()

    def pictures(self) -> list[Path]:
        """All there are, without their twins for dark and narrow pages."""
        return [path for path in self.shown() if not {".dark", ".narrow"} & set(path.suffixes) and path.is_file()]


def chosen(tree: Tree, folder: Path) -> list[Work]:
    """The steps of the parts that `tree` asks for, with those that they need."""
    every = {work.name: work for work in _all(tree, folder)}
    names = dict.fromkeys(name for part in tree["parts"] for name in (*PARTS[part], part))
    return [every[name] for name in names]


def _all(tree: Tree, folder: Path) -> list[Work]:
    runs, seed = Path(tree["runs_dir"]), tree["seed"]
    clip, cache, model = folder / "stand_in_clip", folder / "cache", runs / f"ediffi-conditions-seed{seed}"
    logger = f"logger.mode={tree['logger']['mode']}"
    device = f"device={tree['device']}"
    text = [
        f"conditioner.clip_text.path={clip}",
        "conditioner.clip_text.slots=[tokens,vector]",
        "conditioner.clip_text.width=384",
    ]
    encoded = [
        "data=quickstart_small", "image_size=32", f"out={cache}", 'data.fields.caption.suffixes=[""]',
        "conditioner=[text,clip_text,image_features]", *text, "derived=[style]", "derived.style.size=64", device,
    ]  # fmt: skip
    trained = [
        f"experiment={EXPERIMENT}", f"run={model.name}", f"runs_dir={runs}", f"seed={seed}", f"data.cache={cache}",
        text[0], logger,
    ]  # fmt: skip

    def looked(name: str, *words: str, title: str, intro: str) -> Work:
        script, out = SCRIPTS[name], folder / name
        given = _with(tree, name, [f"model={model}", f"out={out}", device, logger, *words])
        last = out / LAST[name]
        return Work(name, script, given, last, ("model",), title, intro, lambda: sorted(out.glob("*.png")))

    sets = "use_conditions=[[text],[clip_text],[text,clip_text]]"
    tasks, experts = runs / "tasks", runs / "experts"
    return [
        Work("stand_in_clip", "stand_in_clip", _with(tree, "stand_in_clip", [f"out={clip}", device]), clip / NOTE),
        Work("cache", "encode", _with(tree, "cache", encoded), None, ("stand_in_clip",)),
        Work("model", "train", _with(tree, "model", trained), None, ("cache",)),
        looked("attention", title="What attention looks at (figure 3)", intro=STAND_INS),
        looked("switch", "data=training", title="When the prompt decides (figure 4)", intro=STAND_INS + TRAINED),
        looked(
            "conditions", "data=training", sets, "num_samples=200", "scales=[1,2,4]",
            title="Encoders alone and together (figures 8, 18)", intro=STAND_INS + TRAINED,
        ),
        looked("style", title="Style transfer (figure 16)", intro=STAND_INS),
        looked("cost", title="What experts cost (figure 13)", intro="Of the network of that model."),
        Work(
            "painting", "tasks_report",
            _with(tree, "painting", [
                "tasks=[painting]", f"seeds=[{seed}]", f"runs_dir={runs}", "jobs=1", device, logger,
            ]), None,
            title="Phrases painted (figure 17)", intro="A model of captions of canvases, from nothing.",
            shown=lambda: [tasks / f"tasks_painting-seed{seed}.png"],
        ),
        Work(
            "experts", "experts_report",
            _with(tree, "experts", [
                f"schedules=[{SCHEDULE}]", f"seeds={tree['seeds']}".replace(" ", ""), f"runs_dir={runs}", "jobs=1",
                device, logger,
            ]), None, title="Experts against training on (figure 7)",
            intro=f"All numbers, and what was expected: {experts / 'index.html'}.",
            shown=lambda: sorted((experts / SCHEDULE).glob("*.png")),
        ),
    ]  # fmt: skip


SCRIPTS = {
    "attention": "attention_shares",
    "switch": "prompt_switch",
    "conditions": "condition_curves",
    "style": "style_sheet",
    "cost": "expert_cost",
}
# The file that each writes last, but for its notes elsewhere.
LAST = {
    "attention": "self_and_cross.png",
    "switch": "ranks.png",
    "conditions": "sheet.png",
    "style": "sheet.png",
    "cost": "expert_cost.png",
}


def _with(tree: Tree, name: str, words: list[str]) -> tuple[str, ...]:
    """The words of a step under those that `tree` has for it."""
    return tuple(overriding([*words, *added_words(tree["words"].get(name), f"words.{name}", PLACES)]))
