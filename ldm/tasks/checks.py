"""What only a judge would find out, hours later: said before anything trains."""

from collections.abc import Sequence
from typing import Any

from ldm.build import Parts
from ldm.config import compose, instantiate
from ldm.data.fields import Derived
from ldm.data.making.canvas_shards import parse
from ldm.data.paths import COMPOSED
from ldm.errors import UserError
from ldm.evaluation.yardsticks import check_yardsticks
from ldm.networks.downloads import locate
from ldm.tasks.trainings import CANVASES, TASKS, TRAININGS, Part, words_of

Tree = dict[str, Any]
SMALLER = ("superres_x2", "superres_x4", "superres_x4_bsr")
# Fields that a task's judge makes of held-out images, and pretrained networks that it measures with beside metric=.
MADE = {"inpainting": "mask", **dict.fromkeys(SMALLER, "low_resolution")}
NETWORKS: dict[str, tuple[str, ...]] = {name: ("minilm", "efficientnet_lite0") for name in ("text", "painting")}
NETWORKS |= dict.fromkeys((*MADE, "image_to_image"), ("lpips_alex",))


def check_judging(tree: Tree, asked: Sequence[Part]) -> None:
    """Raises UserError, naming the key, for what the judges of these parts would miss."""
    check_yardsticks(tree)
    for task in dict.fromkeys(part.task for part in asked):
        for network in NETWORKS.get(task, ()):
            locate(network)
        _check_data(tree, task)


def _check_data(tree: Tree, task: str) -> None:
    """Held-out conditions of a task on canvases are drawn again for its judge, and become files."""
    name = TASKS[task][0]
    composed = compose("config", words_of(tree, name, 0))
    if TRAININGS[name].images == CANVASES:
        held_out = str(composed["data"]["validation"])
        said = f"data.validation={held_out}, of overrides= or overrides_of.{name}="
        if not held_out.startswith(COMPOSED):
            raise UserError(f"{said}: {task} is judged on canvases of {COMPOSED}validation; leave it out")
        try:
            parse(held_out.removeprefix(COMPOSED))
        except UserError as error:
            raise UserError(f"{said}: {error}") from None
    field, derived = MADE.get(task), composed["derived"] or {}
    if field and not isinstance(instantiate(derived, Parts(composed), "derived").get(field), Derived):
        chosen = "files" if field in derived else "nothing"
        raise UserError(
            f"derived, of overrides= or overrides_of.{name}=: {field!r} comes from {chosen}, and the judge of {task} "
            "makes it of held-out images; choose one that does"
        )
