"""Make images with a trained model, an ensemble of experts, or a cascade.

    python sample.py model=runs/quickstart-diffusion prompt="red heart" num_images=4 seed=0 guidance.scale=3
    python sample.py model=runs/ensemble.yaml prompt="red heart" sampler=heun sigmas=karras num_steps=12 residency=one
    python sample.py model=runs/cascade.yaml prompt="red heart" num_steps=25 keep_stages=true
    python sample.py model=runs/quickstart-diffusion prompts=prompts.txt enlarge=4 ema=raw
    python sample.py model=runs/quickstart-diffusion prompt="red heart" height=128 width=256 tiling=blended tile=64
    python sample.py model=runs/ldm-inpainting image=photo.png mask=hole.png
    python sample.py model=runs/ldm-superres low=small.png
    python sample.py model=runs/ldm-semantic_landscapes map=classes.png tiling=blended tile=256
    python sample.py model=runs/ldm-layout_coco boxes=objects.json
    python sample.py model=runs/ldm-cin256_v2 label=[3,7]
    python sample.py model=runs/mine prompt="red heart" style=photo.png
    python sample.py model=runs/quickstart-diffusion prompt="red heart" start=photo.png strength=0.6
    python sample.py model=runs/quickstart-diffusion prompt="red heart" start=photo.png canvas=[0,16,0,16]
    python sample.py model=runs/mine prompt="a heart, a key" paint=a.png phrases='{"heart": "red", "key": "#00ff00"}'
    python sample.py again=samples/red-heart_0000.png

Of mask= white is the hole, and all else of image= is kept. Files have any size; map= and low= set that of the images,
image= is resized, and with paste=true what fills its hole is put back into the file as it is.
Each phrase of the prompt that is painted has a colour of paint=, exactly. phrases= is in single quotes, as the shell
takes double ones and braces for its own, or FILE.json; "key": {"colour": "red", "strength": -1, "blur": 4} says more.
Text after prompt= is literal. Image n of a prompt depends on model, prompt, settings, seed and n, and on nothing else.
Each file has its recipe inside, and beside it as JSON; again=FILE makes it anew and says whether it is the same.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ldm.asked import check_folder, check_there, is_again
from ldm.config import compose, guarded, helped
from ldm.prompts import read_conditions

MAX_SHOWN = 1000  # images in the grid, or as many as make a picture that again= reads


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
    check_folder("out", tree["out"])

    from ldm.device import choose, keep_memory
    from ldm.given_files import check_files
    from ldm.loading import load_drawer, trained_on
    from ldm.phrases import check_paint
    from ldm.provenance.recipe import Recipes
    from ldm.request import Request
    from ldm.residency import words_of

    device = choose(tree["device"])
    if device.type == "cpu":
        keep_memory()
    check_paint(tree, arguments, conditions)
    check_files(tree, lambda: trained_on(tree["model"]))
    model = load_drawer(tree["model"], tree["first_stage"], tree["ema"], tree["residency"])
    model = model.to(device).tuned(tree["compile"], tree["precision"])
    request = Request(model, tree, arguments, device)
    recipes = Recipes(model, request.rows, request.sampling, tree, device, Path(tree["out"]))
    sheet, shown = write_images(
        tree, conditions, recipes, request.begun, request.drawing, lambda: words_of(model.residency), request.stages
    )
    count = len(conditions) * tree["num_images"]
    which = "all" if count == shown else f"the first {shown}"
    moved = words_of(model.residency)
    print(f"{count} images in {tree['out']}/, {which} together in {sheet}" + (f"; {moved}" if moved else ""))
    return 0


def write_images(
    tree: dict[str, Any],
    conditions: list[dict[str, Any]],
    recipes: Any,
    begun: Callable,
    drawing: Callable | None = None,
    moved: Callable[[], str] = str,
    stages: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Path, int]:
    """Write the images of `begun` (Request.begun) as they are made, then the grid; returns its path and the number of
    images in it.

    `moved` has words for the line of progress. Each image has its recipe of `recipes`. With a `drawing`
    (Request.drawing) conditions.png has each beside itself with that. `stages` has what earlier stages drew of the
    images made last, {name: [B, 3, h, w]}, for files of their own without a recipe. Raises NotFinite, once all others
    are written, if some are not finite; these are not, nor is the grid.
    """
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from ldm.condition_sheet import write_condition_sheet
    from ldm.generate import NotFinite
    from ldm.images import grid, save_image

    out, names = Path(tree["out"]), file_names(conditions)
    rows = [(place, number) for place in range(len(conditions)) for number in range(tree["num_images"])]
    parts = [rows[start : start + tree["batch_size"]] for start in range(0, len(rows), tree["batch_size"])]
    shown: list[Any] = []
    count, room, problem = 0, len(rows), None
    with Progress(disable=len(parts) < 2 or not sys.stderr.isatty(), console=Console(stderr=True)) as bars:
        bar = bars.add_task(f"sampling {len(rows)} images", total=len(parts))
        draws = begun(parts, lambda words: bars.update(bar, description=f"sampling with {words}"))
        for part, draw in zip(parts, draws, strict=True):
            try:
                images, finite = draw().cpu(), [True] * len(part)
            except NotFinite as error:
                images, finite = error.images.cpu(), error.finite.tolist()
                problem = problem or error
            for at, (place, number) in enumerate(part):
                if finite[at]:
                    name = f"{names[place]}_{number:04d}.png"
                    recipes.save(out / name, images[at], part, at)
                    for stage, drawn in stages.items():
                        save_image(out / "stages" / stage / name, drawn[at].cpu(), factor=tree["enlarge"])
            room = room if shown else in_grid(len(rows), tree["num_images"], images.shape[2:], tree["enlarge"])
            if count < room:
                shown.append(images[: room - count])
            count += len(part)
            bars.update(bar, advance=1, description=" ".join(filter(None, (f"sampling {len(rows)} images", moved()))))
    if problem:
        raise problem
    sheet, columns = torch.cat(shown), min(tree["num_images"], room)
    if drawing:
        write_condition_sheet(out / "conditions.png", sheet, drawing, columns, tree["enlarge"])
    made = rows[: -(-len(sheet) // tree["batch_size"]) * tree["batch_size"]]
    grid_of_all = grid(sheet, columns=columns)
    path = recipes.save_sheet(out / "grid.png", grid_of_all, made, len(sheet), columns, tree["batch_size"])
    return path, len(sheet)


def in_grid(count: int, columns: int, size: Sequence[int], factor: int) -> int:
    """How many of `count` images of `size`, px, the grid shows, enlarged by `factor`, at most `columns` in a row."""
    from ldm.data.decoding import MAX_PIXELS
    from ldm.images import grid_size

    def pixels(shown: int) -> int:
        height, width = grid_size(shown, min(columns, shown), size)
        return height * width * factor**2

    most = min(count, MAX_SHOWN)
    return next((shown for shown in range(most, 1, -1) if pixels(shown) <= MAX_PIXELS), 1)


def file_names(conditions: list[dict[str, Any]]) -> list[str]:
    """Short safe file names, one per condition; those that would be the same are numbered by their row."""
    texts = [" ".join(str(value) for value in condition.values()).lower() for condition in conditions]
    names = [re.sub(r"[^a-z0-9]+", "-", text).strip("-")[:60].strip("-") or "image" for text in texts]
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{row:04d}-{name}" for row, name in enumerate(names)]


if __name__ == "__main__":
    guarded(main)
