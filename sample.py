"""Make images with a trained model or an ensemble of experts.

    python sample.py model=runs/quickstart-diffusion prompt="red heart" num_images=4 seed=0 guidance.scale=3
    python sample.py model=runs/ensemble.yaml prompt="red heart" sampler=heun sigmas=karras num_steps=12 out=samples/
    python sample.py model=runs/quickstart-diffusion prompts=prompts.txt enlarge=4 ema=raw
    python sample.py model=runs/quickstart-diffusion prompt="red heart" height=128 width=256 tiling=blended tile=64

Text after prompt= is literal. Image n of a prompt depends on model, prompt, settings, seed and n, and on nothing else.
"""

import re
import sys
from pathlib import Path
from typing import Any

from ldm.config import compose, guarded, help_text


def main(arguments: list[str]) -> int:
    """Write one PNG per image and a grid of all, prompts as rows."""
    if "--help" in arguments or "-h" in arguments:
        usage, examples = __doc__.split("\n\n")[0], __doc__.split("\n\n")[1]
        print(help_text("sample", f"python sample.py model=... [key=value ...]\n\n{usage}", examples))
        return 0
    tree = compose("sample", arguments)
    conditions = read_conditions(tree)

    import torch
    from rich.progress import track

    from ldm.device import choose
    from ldm.images import grid, save_image
    from ldm.run import load

    device = choose(tree["device"])
    model = load(tree["model"], tree["first_stage"], tree["ema"]).to(device).tuned(tree["compile"])
    sampling = model.sampling(tree)
    check_read(tree, model.conditioner.fields | sampling.fields)
    model.first_stage.tile = tree["tile"]
    side = tree["image_size"] or model.image_size
    size = (tree["height"] or side, tree["width"] or side)
    if tree["image"] is not None and model.conditioner.widths()["concat_channels"] and size != (side, side):
        raise ValueError("image: stands beside the latent, so height and width must be image_size")
    asked = {key: fit for key, fit in (("target", None), ("image", side)) if tree[key] is not None}
    given = {key: read_picture(key, tree[key], fit).to(device) for key, fit in asked.items()}
    rows = [(place, number) for place in range(len(conditions)) for number in range(tree["num_images"])]
    made = []
    starts = range(0, len(rows), tree["batch_size"])
    for start in track(starts, f"sampling {len(rows)} images", disable=len(starts) < 2 or not sys.stderr.isatty()):
        part = rows[start : start + tree["batch_size"]]
        batch = collate([conditions[place] for place, _ in part], device)
        batch |= {key: picture.expand(len(part), -1, -1, -1) for key, picture in given.items()}
        negative = {"caption": [tree["negative_prompt"]] * len(part)} if tree["negative_prompt"] else None
        numbers = torch.tensor([number for _, number in part], device=device)
        made.append(model.generate(sampling, batch, numbers, tree["seed"], size, negative).cpu())
    images = torch.cat(made)
    out = Path(tree["out"])
    names = file_names(conditions)
    for image, (place, number) in zip(images, rows, strict=True):
        facts = {**conditions[place], "seed": tree["seed"], "number": number, "model": model.name}
        save_image(out / f"{names[place]}_{number:04d}.png", image, factor=tree["enlarge"], text=facts)
    sheet = save_image(out / "grid.png", grid(images, columns=tree["num_images"]), factor=tree["enlarge"])
    print(f"{len(images)} images in {out}/, all together in {sheet}")
    return 0


def read_conditions(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """What to draw, one dict per row of the grid. Raises ValueError if nothing is asked for, or two things at once."""
    if tree["prompt"] is not None and tree["prompts"] is not None:
        raise ValueError("prompt and prompts exclude each other")
    if tree["num_images"] < 1 or tree["batch_size"] < 1:
        raise ValueError("num_images and batch_size must be at least 1")
    if tree["prompts"] is not None:
        lines = [line.strip() for line in Path(tree["prompts"]).read_text().splitlines()]
        found = [{"caption": line} for line in lines if line]
        if not found:
            raise ValueError(f"prompts={tree['prompts']}: no prompt in it")
    elif tree["prompt"] is not None or tree["label"] is None:
        found = [{"caption": tree["prompt"] or ""}]
    else:
        found = [{}]
    label = {} if tree["label"] is None else {"label": tree["label"]}
    return [{**condition, **label} for condition in found]


def check_read(tree: dict[str, Any], fields: set[str]) -> None:
    """Raises ValueError for a condition on the command line that a model, which reads `fields`, would not see."""
    for key, field in (
        ("prompt", "caption"),
        ("prompts", "caption"),
        ("negative_prompt", "caption"),
        ("label", "label"),
        ("target", "target"),
        ("image", "image"),
    ):
        if tree[key] not in (None, "") and field not in fields:
            given = f"it is conditioned on {', '.join(sorted(fields))}" if fields else "it has no conditions"
            raise ValueError(f"{key}: this model reads no {field}; {given}")


def read_picture(key: str, path: str, side: int | None) -> Any:
    """An image file as [1, 3, H, W] in [-1, 1]; with a `side`, px, the middle square of it as training sees it.

    Raises ValueError if it is broken, OSError if it is not there.
    """
    import numpy as np

    from data.decoding import PilDecoder, decode_image
    from data.errors import BadSample
    from data.transforms import View, to_tensor

    content = Path(path).read_bytes()
    try:
        if side is None:
            return to_tensor([np.asarray(decode_image(content))])
        return to_tensor([View().crop(PilDecoder()(content, side), side)])
    except BadSample as error:
        raise ValueError(f"{key}={path}: {error.kind} ({error})") from error


def collate(conditions: list[dict[str, Any]], device: Any) -> dict[str, Any]:
    """A batch of conditions: captions stay a list, labels become a tensor."""
    import torch

    batch: dict[str, Any] = {key: [condition[key] for condition in conditions] for key in conditions[0]}
    if "label" in batch:
        batch["label"] = torch.tensor(batch["label"], device=device)
    return batch


def file_names(conditions: list[dict[str, Any]]) -> list[str]:
    """Short safe file names, one per condition; those that would be the same are numbered by their row."""
    texts = [" ".join(str(value) for value in condition.values()).lower() for condition in conditions]
    names = [re.sub(r"[^a-z0-9]+", "-", text).strip("-")[:60].strip("-") or "image" for text in texts]
    return [name if names.count(name) == 1 else f"{row:04d}-{name}" for row, name in enumerate(names)]


if __name__ == "__main__":
    guarded(main)
