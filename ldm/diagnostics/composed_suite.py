"""Models on prompts of composed emoji, judged exactly by category (eDiff-I's figures 10 to 12, in small), as a job.

Stopped and started again it goes on; pictures are drawn and kept as those of scripts/prompt_suite.py.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.data.making.canvases import SIDES, CanvasSettings
from ldm.data.making.cutouts import SPLITS
from ldm.data.transforms import to_tensor
from ldm.device import choose
from ldm.diagnostics.composed_set import ComposedSet, Item, truth
from ldm.drawer import Drawer
from ldm.errors import UserError
from ldm.evaluation.logged import log
from ldm.evaluation.stand_ins import said_of
from ldm.evaluation.table import write_csv
from ldm.files import write_text
from ldm.holding import held
from ldm.images import save_image
from ldm.loading import averages, load_drawer, residencies
from ldm.report.sheet import labelled_sheet
from ldm.request import asked_guidance
from ldm.study import drawing
from ldm.study.intervals import wilson
from ldm.study.names import file_name
from ldm.study.prompt_set import REAL, Prompt

Row = dict[str, Any]
SHOWN = 3  # prompts of each category on the sheet
GROUP = "composed"


def composed_suite(tree: dict[str, Any], words: Sequence[str] = ()) -> tuple[list[Row], Path]:
    """Draw and judge as `tree` (conf/composed_suite.yaml, which `words` made) says; the rows of composed.csv and the
    folder with all files.

    Of a row: `model`, `category`, `prompts`, and `score`, the share of pictures that show what is asked for, with its
    interval by Wilson; `chance` is that share where each picture is held to the next prompt of its category. `truth`
    among the models are the canvases themselves. Everything is checked before anything is drawn.
    """
    tree = {**tree, "guidance": asked_guidance(words, tree["guidance"]), "num_images": 1}
    device, folder = choose(tree["device"]), Path(tree["out"])
    paths = [tree["models"]] if isinstance(tree["models"], str) else list(tree["models"])
    if not paths:
        raise UserError("models=[]: at least one model")
    if tree["split"] not in SPLITS:
        raise UserError(f"split={tree['split']}: emoji are of {' or '.join(SPLITS)}")
    drawers = _drawers(tree, paths)
    asked = _asked(tree, max(model.image_size for model in drawers.values()))
    prompts = [Prompt(item.prompt, item.category, GROUP) for item in asked.items]
    images = {"truth": torch.stack([truth(item) for item in asked.items])}
    with held(folder, "evaluating into"):
        for path, (name, model) in zip(paths, drawers.items(), strict=True):
            own = drawing.begin(folder, name, drawing.identity_of(model, tree, prompts))
            _draw(tree, path, model, prompts, own, device)
            pixels = [drawing.pixels_of(own / file_name(place, 0)) for place in range(len(prompts))]
            images[name] = to_tensor(pixels)
        verdicts = {name: _judged(asked, own) for name, own in images.items()}
        rows = [row for name, found in verdicts.items() for row in _rows(name, asked.items, found)]
        told = [f"{name}: {said}" for name, model in drawers.items() if (said := said_of(model))]
        _write(folder, asked, images, verdicts, rows, tree, "; ".join(told))
    return rows, folder


def _drawers(tree: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Drawer]:
    """The models by their names, checked."""
    found: dict[str, Drawer] = {}
    residency, averaged = residencies(paths, tree["residency"]), averages(paths, tree["ema"])
    for path in paths:
        model = load_drawer(path, None, averaged[path], residency[path])
        if model.name in (*found, REAL, "truth"):
            raise UserError(f"models: {model.name}: two are called that, or the canvases are; rename its folder")
        drawing.sampling_of(model, tree)
        found[model.name] = model
    return found


def _asked(tree: Mapping[str, Any], image_size: int) -> ComposedSet:
    size = min(max(image_size, SIDES[0]), SIDES[1]) if tree["size"] is None else tree["size"]
    settings = CanvasSettings(tree["split"], (size, size), seed=tree["seed"])
    return ComposedSet(settings, tree["categories"], tree["num_prompts"])


def _draw(
    tree: Mapping[str, Any], path: str, model: Drawer, prompts: Sequence[Prompt], folder: Path, device: torch.device
) -> None:
    """The pictures of a model that are not there yet."""
    jobs = drawing.missing(folder, [(place, 0) for place in range(len(prompts))])
    if jobs:
        sampling = drawing.sampling_of(model.to(device).tuned(tree["compile"], tree["precision"]), tree)
        for _ in drawing.draw(model, path, sampling, prompts, jobs, folder, tree, device):
            pass


Verdict = tuple[bool, bool, str]  # whether it shows what is asked for, what the next prompt asks for; what is seen


def _judged(asked: ComposedSet, images: Tensor) -> list[Verdict]:
    """Of each item's picture [3, H, W]."""
    found = []
    for place, (item, image) in enumerate(zip(asked.items, images, strict=True)):
        own = [each for each in asked.items if each.category == item.category]
        other = own[(own.index(item) + 1) % len(own)]
        seen = ", ".join(thing.name for thing in asked.things(item, images[place]))
        found.append((asked.passes(item, image), asked.passes(other, image), seen))
    return found


def _rows(name: str, items: Sequence[Item], verdicts: Sequence[Verdict]) -> list[Row]:
    rows = []
    for category in dict.fromkeys(item.category for item in items):
        own = [verdict for item, verdict in zip(items, verdicts, strict=True) if item.category == category]
        score = wilson(sum(right for right, *_ in own), len(own))
        row: Row = {"model": name, "category": category, "prompts": len(own), "score": score.value}
        chance = sum(other for _, other, _ in own) / len(own)
        rows.append({**row, "score_low": score.low, "score_high": score.high, "chance": chance})
    return rows


def _write(
    folder: Path, asked: ComposedSet, images: Mapping[str, Tensor], verdicts: Mapping[str, Sequence[Verdict]],
    rows: Sequence[Row], tree: Mapping[str, Any], told: str,
) -> None:  # fmt: skip
    """composed.csv, pictures.csv, and sheet.png with what is `told` below; the prompts with their canvases as set.csv
    and truth/; the same in W&B.
    """
    write_csv(folder / "composed.csv", rows)
    each = [
        {"model": name, "category": item.category, "prompt": item.prompt, "passes": right, "seen": seen}
        for name, found in verdicts.items()
        for item, (right, _, seen) in zip(asked.items, found, strict=True)
    ]
    write_csv(folder / "pictures.csv", each)
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["prompt", "category", "group", "image"])
    for place, (item, image) in enumerate(zip(asked.items, images["truth"], strict=True)):
        file = save_image(folder / "truth" / file_name(place, 0), image)
        table.writerow([item.prompt, item.category, GROUP, str(file.relative_to(folder))])
    write_text(folder / "set.csv", text.getvalue())
    _sheet(folder / "sheet.png", asked.items, images, verdicts, told)
    tables = {f"{row['model']}/{row['category']}": [row] for row in rows}
    log(tree, folder, tables, {"sheet": folder / "sheet.png"})


def _sheet(
    path: Path,
    items: Sequence[Item],
    images: Mapping[str, Tensor],
    verdicts: Mapping[str, Sequence[Verdict]],
    told: str,
) -> None:
    """The first prompts of each category; a mark beside a prompt says whose pictures show it."""
    categories = [item.category for item in items]
    shown = [n for n, own in enumerate(categories) if categories[:n].count(own) < SHOWN]
    side = max(own.shape[-1] for own in images.values())
    same = [torch.nn.functional.interpolate(own[shown], (side, side), mode="nearest") for own in images.values()]
    names = list(images)
    texts = []
    for place in shown:
        right = [name for name in names[1:] if verdicts[name][place][0]]
        texts.append(f"{categories[place]}: {items[place].prompt} [{', '.join(right) or 'none'}]")
    labelled_sheet(path, torch.stack(same, dim=1), names, texts, told)
