"""The judgement of one task, in a process of its own: numbers and a contact sheet as files."""

from pathlib import Path
from typing import Any

from PIL import Image

from ldm.config import named_in_step
from ldm.files import write_json
from ldm.images import save_image
from ldm.ranks import is_rank_zero
from ldm.tasks.bench import Bench
from ldm.tasks.judges import JUDGES
from ldm.tasks.trainings import Part, Places, parts

JUDGED, SHEET = "judged.json", "sheet.png"


def run_judge(stage: str, task: str, seed: int, tree: dict[str, Any]) -> None:
    """What the process of a judgement does. Raises UserError for a stage or part that the report of `tree` has not."""
    judge_of = named_in_step("stage", stage, {"judge": judge})
    part = Part(task, seed)
    judge_of(named_in_step("task", part.name, {each.name: each for each in parts(tree)}), tree)


def judge(part: Part, tree: dict[str, Any]) -> None:
    """Write what the trained models of a part are worth; of several processes the first does."""
    if not is_rank_zero():
        return
    folder = Places(tree).judged(part)
    found = JUDGES[part.task](Bench(tree, part, folder))
    save_image(folder / SHEET, found.sheet, factor=found.enlarge, text={"caption": found.caption})
    write_json(folder / JUDGED, {"rows": found.rows})


def caption_of(sheet: Path) -> str:
    """What a contact sheet shows."""
    with Image.open(sheet) as image:
        return image.info.get("caption", "")
