"""Make images with a trained model or an ensemble of experts.

    python sample.py model=runs/quickstart-diffusion prompt="red heart" num_images=4 seed=0 guidance.scale=3
    python sample.py model=runs/ensemble.yaml prompt="red heart" sampler=heun sigmas=karras num_steps=12 out=samples/
    python sample.py model=runs/quickstart-diffusion prompts=prompts.txt enlarge=4 ema=raw
    python sample.py model=runs/quickstart-diffusion prompt="red heart" height=128 width=256 tiling=blended tile=64
    python sample.py model=runs/ldm-inpainting image=photo.png mask=hole.png
    python sample.py model=runs/ldm-superres low=small.png
    python sample.py model=runs/ldm-semantic_landscapes map=classes.png tiling=blended tile=256
    python sample.py model=runs/ldm-layout_coco boxes=objects.json
    python sample.py model=runs/ldm-cin256_v2 label=[3,7]
    python sample.py model=runs/mine prompt="red heart" given.style=photo.png
    python sample.py model=runs/quickstart-diffusion prompt="red heart" start=photo.png strength=0.6
    python sample.py model=runs/quickstart-diffusion prompt="red heart" start=photo.png canvas=[0,16,0,16]
    python sample.py again=samples/red-heart_0000.png

Of mask= white is the hole, and all else of image= is kept. Files have any size; map= and low= set that of the images,
image= is resized, and with paste=true what fills its hole is put back into the file as it is.
Text after prompt= is literal. Image n of a prompt depends on model, prompt, settings, seed and n, and on nothing else.
Each file has its recipe inside, and beside it as JSON; again=FILE makes it anew and says whether it is the same.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm.asked import check_there, is_again
from ldm.config import compose, guarded, helped
from ldm.prompts import read_conditions

MAX_SHOWN = 1000  # images in the grid


def main(arguments: list[str]) -> int:
    """Write one PNG per image and a grid of all, prompts as rows."""
    if helped("sample", __doc__, arguments):
        return 0
    anew = is_again(arguments)
    tree = compose("sample", arguments, complete=not anew)
    if anew:
        from ldm.provenance.again import again

        print(again(tree, arguments))
        return 0
    conditions = read_conditions(tree)
    check_there(tree)

    from ldm.device import choose
    from ldm.given_files import check_files
    from ldm.loading import load_drawer, trained_on
    from ldm.provenance.recipe import Recipes
    from ldm.request import Request

    device = choose(tree["device"])
    check_files(tree, lambda: trained_on(tree["model"]))
    model = load_drawer(tree["model"], tree["first_stage"], tree["ema"]).to(device).tuned(tree["compile"])
    request = Request(model, tree, arguments, device)
    recipes = Recipes(model, request.rows, request.sampling, tree, device, Path(tree["out"]))
    sheet = write_images(tree, conditions, recipes, request.images, request.drawing)
    count = len(conditions) * tree["num_images"]
    shown = "all" if count <= MAX_SHOWN else f"the first {MAX_SHOWN}"
    print(f"{count} images in {tree['out']}/, {shown} together in {sheet}")
    return 0


def write_images(
    tree: dict[str, Any],
    conditions: list[dict[str, Any]],
    recipes: Any,
    images_of: Callable,
    drawing: Callable | None = None,
) -> Path:
    """Write the images of `images_of([(row of conditions, number)])` as they are made, then the grid; returns its path.

    Each has its recipe of `recipes`. With a `drawing` (Request.drawing) conditions.png has each image beside itself
    with that. Raises NotFinite, once all others are written, if some are not finite; these are not, nor is the grid.
    """
    import torch
    from rich.progress import track

    from ldm.condition_sheet import write_condition_sheet
    from ldm.generate import NotFinite
    from ldm.images import grid

    out, names = Path(tree["out"]), file_names(conditions)
    rows = [(place, number) for place in range(len(conditions)) for number in range(tree["num_images"])]
    starts = range(0, len(rows), tree["batch_size"])
    shown, problem = [], None
    for start in track(starts, f"sampling {len(rows)} images", disable=len(starts) < 2 or not sys.stderr.isatty()):
        part = rows[start : start + tree["batch_size"]]
        try:
            images, finite = images_of(part).cpu(), [True] * len(part)
        except NotFinite as error:
            images, finite = error.images.cpu(), error.finite.tolist()
            problem = problem or error
        for at, (place, number) in enumerate(part):
            if finite[at]:
                recipes.save(out / f"{names[place]}_{number:04d}.png", images[at], part, at)
        shown.append(images[: max(MAX_SHOWN - start, 0)])
    if problem:
        raise problem
    sheet, columns = torch.cat(shown), min(tree["num_images"], MAX_SHOWN)
    if drawing:
        write_condition_sheet(out / "conditions.png", sheet, drawing, columns, tree["enlarge"])
    made = rows[: -(-len(sheet) // tree["batch_size"]) * tree["batch_size"]]
    grid_of_all = grid(sheet, columns=columns)
    return recipes.save_sheet(out / "grid.png", grid_of_all, made, len(sheet), columns, tree["batch_size"])


def file_names(conditions: list[dict[str, Any]]) -> list[str]:
    """Short safe file names, one per condition; those that would be the same are numbered by their row."""
    texts = [" ".join(str(value) for value in condition.values()).lower() for condition in conditions]
    names = [re.sub(r"[^a-z0-9]+", "-", text).strip("-")[:60].strip("-") or "image" for text in texts]
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{row:04d}-{name}" for row, name in enumerate(names)]


if __name__ == "__main__":
    guarded(main)
