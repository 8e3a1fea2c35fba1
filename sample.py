"""Make images with a trained model or an ensemble of experts.

    python sample.py model=runs/quickstart-diffusion prompt="red heart" num_images=4 seed=0 guidance.scale=3
    python sample.py model=runs/ensemble.yaml prompt="red heart" sampler=heun sigmas=karras num_steps=12 out=samples/
    python sample.py model=runs/quickstart-diffusion prompts=prompts.txt enlarge=4 ema=raw
    python sample.py model=runs/quickstart-diffusion prompt="red heart" height=128 width=256 tiling=blended tile=64
    python sample.py model=runs/ldm-inpainting image=photo.png mask=hole.png   # white is the hole
    python sample.py model=runs/mine prompt="red heart" given.style=photo.png
    python sample.py model=runs/quickstart-diffusion prompt="red heart" start=photo.png strength=0.6

Text after prompt= is literal. Image n of a prompt depends on model, prompt, settings, seed and n, and on nothing else.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm.asked import check_there
from ldm.config import compose, guarded, helped
from ldm.prompts import read_conditions

MAX_SHOWN = 1000  # images in the grid


def main(arguments: list[str]) -> int:
    """Write one PNG per image and a grid of all, prompts as rows."""
    if helped("sample", __doc__, arguments):
        return 0
    tree = compose("sample", arguments)
    conditions = read_conditions(tree)
    check_there(tree)

    from ldm.device import choose
    from ldm.loading import load_drawer
    from ldm.request import Request

    device = choose(tree["device"])
    model = load_drawer(tree["model"], tree["first_stage"], tree["ema"]).to(device).tuned(tree["compile"])
    images_of = Request(model, tree, arguments, device).images
    facts = {"seed": tree["seed"], "model": model.name}
    sheet = write_images(tree, conditions, facts, images_of)
    count = len(conditions) * tree["num_images"]
    shown = "all" if count <= MAX_SHOWN else f"the first {MAX_SHOWN}"
    print(f"{count} images in {tree['out']}/, {shown} together in {sheet}")
    return 0


def write_images(
    tree: dict[str, Any], conditions: list[dict[str, Any]], facts: dict[str, Any], images_of: Callable
) -> Path:
    """Write the images of `images_of([(row of conditions, number)])` as they are made, then the grid; returns its path.

    Raises NotFinite, once all others are written, if some are not finite: these are not, and there is no grid.
    """
    import torch
    from rich.progress import track

    from ldm.generate import NotFinite
    from ldm.images import grid, save_image

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
        for image, (place, number), whole in zip(images, part, finite, strict=True):
            if whole:
                text = {**conditions[place], **facts, "number": number}
                save_image(out / f"{names[place]}_{number:04d}.png", image, factor=tree["enlarge"], text=text)
        shown.append(images[: max(MAX_SHOWN - start, 0)])
    if problem:
        raise problem
    columns = min(tree["num_images"], MAX_SHOWN)
    return save_image(out / "grid.png", grid(torch.cat(shown), columns=columns), factor=tree["enlarge"])


def file_names(conditions: list[dict[str, Any]]) -> list[str]:
    """Short safe file names, one per condition; those that would be the same are numbered by their row."""
    texts = [" ".join(str(value) for value in condition.values()).lower() for condition in conditions]
    names = [re.sub(r"[^a-z0-9]+", "-", text).strip("-")[:60].strip("-") or "image" for text in texts]
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{row:04d}-{name}" for row, name in enumerate(names)]


if __name__ == "__main__":
    guarded(main)
