"""``sample.py again=picture.png``: the picture made anew from its recipe, and whether it is the same bit for bit."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.config.keys import bare
from ldm.data.decoding import decode_image
from ldm.data.errors import BadSample
from ldm.device import choose
from ldm.drawer import Drawer
from ldm.errors import UserError
from ldm.generate import NotFinite
from ldm.images import grid, picture_of
from ldm.loading import load_drawer
from ldm.provenance.reading import images_from, read_bytes, read_recipe, rows_from, tree_from
from ldm.provenance.recipe import Recipes, levels, model_facts, pixels_digest, surroundings
from ldm.request import Request

log = logging.getLogger(__name__)


def again(command: Mapping[str, Any], words: Sequence[str]) -> str:
    """Make the picture anew that `command`, a tree of conf/sample.yaml made by `words`, names; what to say of it.

    It goes to OUT/NAME-again.png. Raises UserError for a picture without a recipe or with one that was edited, for
    other weights and other files than it was made with, and if it did not come out the same.
    """
    picture = Path(command["again"])
    content = read_bytes(picture)
    recipe, own = read_recipe(picture, content), _pixels(content, picture)
    tree, weights = tree_from(recipe, command, picture)
    device, tree["device"] = _device(recipe, words, command["device"])
    drawer = load_drawer(weights, tree["first_stage"], tree["ema"], tree["residency"])
    drawer = drawer.to(device).tuned(tree["compile"], tree["precision"])
    _check_model(drawer, recipe, tree["model"], picture)
    words = ["guidance", "tiling"]  # as the recipe says, and nothing added to it
    request = Request(drawer, tree, words, device)
    request.rows = rows_from(recipe, request.rows, picture)
    path = Path(command["out"]) / f"{picture.stem}-again.png"
    recipes = Recipes(drawer, request.rows, request.sampling, tree, device, path.parent)
    image = _draw(request, recipe, recipes, path, picture)
    made = picture_of(image, tree["enlarge"])
    same, edited = pixels_digest(made) == recipe["pixels"], pixels_digest(own) != recipe["pixels"]
    others = "; ".join(_others(recipe, drawer, tree, request, device))
    if edited:
        log.warning("%s: has other pixels than it was written with: edited, or saved by something else", picture)
    if same:
        return f"{path}: made anew, bit for bit as {picture} was" + (f", though {others}" if others else "")
    count = "" if edited or own.size != made.size else _difference(np.asarray(made), np.asarray(own))
    why = others or "nothing that its recipe tells is another; a GPU may not give the same bits twice"
    raise UserError(f"{path}: made anew, and not as {picture} was{count}: {why}")


def _difference(one: np.ndarray, other: np.ndarray) -> str:
    apart = np.abs(one.astype(int) - other)
    return f" ({(apart > 0).sum()} of {apart.size} values are others, by at most {apart.max()} of 255)"


def _pixels(content: bytes, picture: Path) -> Image.Image:
    try:
        return decode_image(content)
    except BadSample as error:
        raise UserError(f"again={picture}: {error.kind} ({error})") from error


def _check_model(drawer: Drawer, recipe: Mapping[str, Any], place: str, picture: Path) -> None:
    now, then = model_facts(drawer), recipe["model"]
    known = then.get("weights") if isinstance(then.get("weights"), list) else []
    was = [facts.get("sha256") if isinstance(facts, dict) else None for facts in known]
    own = [facts["sha256"] for facts in now["weights"]]
    if own != was:
        short = [", ".join(str(digest)[:12] for digest in every) for every in (own, was)]
        raise UserError(
            f"again={picture}: model={place} has other weights than it was made with (sha256 {short[0]}, not "
            f"{short[1]}); model= says where those are"
        )


def _device(recipe: Mapping[str, Any], words: Sequence[str], asked: str) -> tuple[torch.device, str]:
    """The kind of device that it was made on, unless another is asked for; on a CPU with as many threads."""
    if "device" not in map(bare, words) and recipe["made_with"].get("device") == "cpu":
        asked = "cpu"
    device, threads = choose(asked), recipe["made_with"].get("threads")
    if device.type == "cpu" and type(threads) is int and 0 < threads <= (os.cpu_count() or 1):
        torch.set_num_threads(threads)
    return device, asked


def _draw(request: Request, recipe: Mapping[str, Any], recipes: Recipes, path: Path, picture: Path) -> Tensor:
    """The image, or the sheet of several, [3, H, W]; written to `path`."""
    made, drawn = images_from(recipe, len(request.rows), picture), recipe["drawn"]
    at, shown, columns, size = (drawn.get(key) for key in ("at", "shown", "columns", "batch_size"))
    if type(at) is int and 0 <= at < len(made):
        image = _images(request, made)[at]
        recipes.save(path, image, made, at)
        return image
    if not all(type(n) is int and n > 0 for n in (shown, columns, size)) or not columns <= shown <= len(made):
        raise UserError(f"again={picture}: its recipe: drawn.at is none of its images")
    images = torch.cat([_images(request, made[start : start + size]) for start in range(0, len(made), size)])
    sheet = grid(images[:shown], columns=columns)
    recipes.save_sheet(path, sheet, made, shown, columns, size)
    return sheet


def _images(request: Request, batch: list[tuple[int, int]]) -> Tensor:
    """Images on the CPU; those that are not finite are NaN, as they were when others of their batch were written."""
    try:
        return request.images(batch).cpu()
    except NotFinite as error:
        return error.images.cpu()


def _others(
    recipe: Mapping[str, Any], drawer: Drawer, tree: Mapping[str, Any], request: Request, device: torch.device
) -> Iterator[str]:
    """What is another than when the picture was made, in words."""
    now, then = surroundings(drawer, tree, device), recipe["made_with"]
    for key, value in now.items():
        if then.get(key) != value:
            yield f"{key} was {str(then.get(key))[:80]} and is {value}"
    if recipe["levels"] != levels(request.sampling):
        yield "the noise levels are others"
    configs = [facts.get("config") for facts in recipe["model"]["weights"]]
    if configs != [facts["config"] for facts in model_facts(drawer)["weights"]]:
        yield "the model's config.yaml is another"
    if json.loads(json.dumps(model_facts(drawer).get("settings"))) != recipe["model"].get("settings"):
        yield "its manifest says to sample in another way"
