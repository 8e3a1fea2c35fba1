"""Several models on one set of prompts: pictures, alignment by category and group with intervals, a page.

Stopped and started again it goes on; a model more, or another alignment, makes nothing again that is there.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from ldm.build import Parts
from ldm.config import instantiate
from ldm.data.transforms import to_tensor
from ldm.device import choose
from ldm.drawer import Drawer
from ldm.errors import UserError
from ldm.evaluation.table import write_csv
from ldm.files import write_json
from ldm.holding import held
from ldm.images import save_image
from ldm.loading import averages, load_drawer, residencies
from ldm.measuring import Ranks, in_rounds
from ldm.request import asked_guidance
from ldm.study import drawing
from ldm.study.grouped import Row, grouped, single
from ldm.study.names import INDEX, file_name
from ldm.study.prompt_set import BUILT_IN, REAL, Prompt, read_prompt_set
from ldm.study.real_pictures import real_pictures
from ldm.study.suite_page import write_page
from ldm.training.distributed import process_group, together

COLUMNS = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))


def prompt_suite(tree: dict[str, Any], words: Sequence[str]) -> tuple[list[Row], Path]:
    """Draw and score as `tree` (conf/prompt_suite.yaml) says, which `words` made; the rows of groups.csv, and the
    folder with all files.

    No rows on ranks but 0. Everything is checked before anything is drawn.
    """
    tree = {**tree, "guidance": asked_guidance(words, tree["guidance"])}
    paths = [tree["models"]] if isinstance(tree["models"], str) else list(tree["models"])
    if not paths:
        raise UserError("models=[]: at least one model")
    tree["models"] = paths
    source = Path(tree["prompts"]).expanduser() if tree["prompts"] else BUILT_IN
    prompts = read_prompt_set(source)
    device = choose(tree["device"])
    folder = Path(tree["out"])
    with process_group(device) as (rank, world_size), ExitStack() as stack:
        with together():
            identities, size = _checked(tree, paths, prompts)
            alignment = instantiate(tree["alignment"], Parts(tree), "alignment").to(device)
            pictures = real_pictures([prompt for prompt in prompts if prompt.image], source.parent, size)
            if rank == 0:
                stack.enter_context(held(folder, "evaluating into"))
                for name, identity in identities.items():
                    drawing.begin(folder, name, identity)
                if pictures:
                    _write_real(folder, pictures)
        for path, name in zip(paths, identities, strict=True):
            _draw(tree, path, prompts, folder / "images" / name, Ranks(device, rank, world_size))
        numbers = {**({REAL: 1} if pictures else {}), **dict.fromkeys(identities, tree["num_images"])}
        found = {
            name: drawing.scores(
                folder / "images" / name, prompts, count, alignment, tree["alignment"], tree["batch_size"], device,
                rank, world_size,
            )
            for name, count in numbers.items()
        }  # fmt: skip
        return ([], folder) if rank else (_write(folder, prompts, found, alignment), folder)


def _checked(tree: Mapping[str, Any], paths: Sequence[str], prompts: Sequence[Prompt]) -> tuple[dict[str, str], int]:
    """{name: identity} of the models, and the largest image size among them; see drawing.sampling_of."""
    identities: dict[str, str] = {}
    size = 0
    for path in paths:
        model = _load(tree, path)
        name = _name(path, model)
        if name in identities or name == REAL:
            taken = "the real pictures are called that" if name == REAL else "two are called that"
            raise UserError(f"models: {name}: {taken}; rename its folder")
        drawing.sampling_of(model, tree)
        identities[name] = drawing.identity_of(model, tree, prompts)
        size = max(size, model.image_size)
    return identities, size


def _load(tree: Mapping[str, Any], path: str) -> Drawer:
    residency, averaged = residencies(tree["models"], tree["residency"]), averages(tree["models"], tree["ema"])
    return load_drawer(path, None, averaged[path], residency[path])


def _name(path: str, model: Drawer) -> str:
    """What a model is called in tables: weights that were named by their file have its name too."""
    file = Path(path)
    return f"{model.name}-{file.stem}" if file.suffix == ".safetensors" else model.name


def _draw(tree: Mapping[str, Any], path: str, prompts: Sequence[Prompt], folder: Path, ranks: Ranks) -> None:
    """This rank's share of the pictures that a model has not drawn yet; it is loaded only if there are any."""
    jobs = [(place, number) for place in range(len(prompts)) for number in range(tree["num_images"])]
    own = drawing.missing(folder, jobs[ranks.rank :: ranks.world_size])
    drawn: Iterator[int] = iter(())
    with together():
        if own:
            model = _load(tree, path).to(ranks.device).tuned(tree["compile"], tree["precision"])
            drawn = drawing.draw(
                model, path, drawing.sampling_of(model, tree), prompts, own, folder, tree, ranks.device
            )
    shown = bool(own) and ranks.rank == 0
    with Progress(*COLUMNS, TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(), disable=not shown) as bars:
        bar = bars.add_task(f"drawing {folder.name}", total=len(own))
        for count, mine in in_rounds(drawn, ranks):
            bars.advance(bar, count if mine else 0)


def _write_real(suite: Path, pictures: Sequence[Any]) -> None:
    """The real pictures, one of each prompt."""
    images = to_tensor(list(pictures))
    content = b"".join(picture.tobytes() for picture in pictures)
    folder = drawing.begin(suite, REAL, hashlib.sha256(content).hexdigest())
    for place, image in enumerate(images):
        if not (folder / file_name(place, 0)).exists():
            save_image(folder / file_name(place, 0), image)


def _write(
    folder: Path, prompts: Sequence[Prompt], found: Mapping[str, list[list[float]]], alignment: nn.Module
) -> list[Row]:
    """scores.csv, groups.csv, suite.json, and the page with its plot; returns the rows of groups.csv."""
    metric = f"{alignment.metric}/{alignment.name}"
    rows = grouped(prompts, found, metric)
    write_csv(folder / "scores.csv", single(prompts, found, metric))
    write_csv(folder / "groups.csv", rows)
    listed = [{"prompt": each.prompt, "category": each.category, "group": each.group} for each in prompts]
    write_json(folder / INDEX, {"metric": metric, "prompts": listed, "scores": found})
    write_page(folder, prompts, found, rows, metric)
    return rows
