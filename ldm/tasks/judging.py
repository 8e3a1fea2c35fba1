"""The judgement of one task, in a process of its own: numbers and a contact sheet as files."""

from pathlib import Path
from typing import Any

from PIL import Image

from ldm.files import write_json
from ldm.images import save_image
from ldm.ranks import is_rank_zero
from ldm.tasks.bench import Bench
from ldm.tasks.judges import JUDGES
from ldm.tasks.trainings import Part, Places

JUDGED, SHEET = "judged.json", "sheet.png"


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
