"""What a sample is asked for, held against what a model reads: nothing is ignored, nothing needed is missing."""

import os
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.classes import class_names
from data.decoding import PilDecoder, decode_image, read_picture
from data.errors import BadSample
from data.fields import Mask, SemanticMap
from data.making.files import refuse_special
from data.module import ShardData
from data.transforms import View, to_tensor
from ldm.drawer import Drawer
from ldm.generate import Size
from ldm.sampling import Sampling

# Keys of sample.py and the field of a batch that each fills.
FIELDS = {
    "prompt": "caption", "prompts": "caption", "negative_prompt": "caption", "label": "label", "target": "target",
    "image": "image", "mask": "mask", "map": "segmentation",
}  # fmt: skip
WAYS = {"caption": "prompt=TEXT", "label": "label=N", "image": "image=FILE", "mask": "mask=FILE, white in the hole",
        "segmentation": "map=FILE"}  # fmt: skip


def check_given(tree: Mapping[str, Any], model: Drawer, sampling: Sampling, captioned: bool) -> None:
    """Hold the keys of `tree` to a model; `captioned`: whether there is a prompt, perhaps an empty one.

    Raises ValueError for a condition that would not be read, for one that is needed, or for guidance against a null
    that no training saw.
    """
    use, used = sampling.use_conditions, model.conditions(sampling)
    fields = set().union(sampling.fields, *used.values())
    for key, field in FIELDS.items():
        if tree[key] not in (None, "") and field not in fields:
            given = f"it is conditioned on {', '.join(sorted(fields))}" if fields else "it has no conditions"
            without = f" with use_conditions=[{','.join(use)}]" if use and field in model.fields else ""
            raise ValueError(f"{key}: this model{without} reads no {field}; {given}")
    present = {field for key, field in FIELDS.items() if tree[key] not in (None, "")}
    present |= {"caption"} if captioned else set()
    holes = {name: "mask" for name, own in used.items() if tree["mask"] is None and "mask" in own}
    needed = {**holes, **model.missing(dict.fromkeys(present), sampling)}
    for name, field in needed.items():
        way = WAYS.get(field, f"a batch with {field!r} given to ldm.load.load(...).generate: there is no key for it")
        raise ValueError(f"conditioner {name} needs {field!r}: give {way}")
    negative = negatives(tree)
    left = model.left_out(sampling, negative)
    if negative and not left & {name for name, own in used.items() if "caption" in own}:
        raise ValueError(
            "negative_prompt: would not be read: it is for the text that guidance leaves out, and guidance.scale=1, "
            "autoguidance and scales without the text leave none out"
        )


def negatives(tree: Mapping[str, Any]) -> dict[str, str]:
    """Fields with what to guide away from in them."""
    return {"caption": tree["negative_prompt"]} if tree["negative_prompt"] else {}


def class_number(label: int | str, data: ShardData) -> int:
    """The number of a class that is given by its number or by its name in the manifest of a run's `data`."""
    if isinstance(label, int):
        return label
    names = class_names(data.training_set.train)
    if label in names:
        return names.index(label)
    known = f"one of {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}" if names else (
        "of which there are none: no manifest.json beside the shards of the run tells them"
    )  # fmt: skip
    raise ValueError(f"label={label!r}: expected int, or the name of a class, {known}")


def read_pictures(tree: Mapping[str, Any], model: Drawer) -> dict[str, Tensor]:
    """Image files that `tree` names as fields of a batch of one, cut as the training images are.

    target, alone, is as large as its file. Raises ValueError if one is broken or of another shape than the image,
    OSError if it is not there.
    """
    side = tree["image_size"] or model.image_size
    fields = model.data.fields if tree["mask"] or tree["map"] else {}
    found, image = {}, None
    if tree["target"] is not None:
        found["target"] = to_tensor([_read("target", tree, lambda content: np.asarray(decode_image(content)))])
    if tree["image"] is not None:
        pixels = _read("image", tree, lambda content: PilDecoder()(content, side))
        image = _read("image", tree, partial(read_picture, image_size=side))
        found["image"] = to_tensor([View().crop(pixels, side)])
    for key, name, usual in (("mask", "mask", Mask()), ("map", "segmentation", SemanticMap())):
        if tree[key] is not None:
            own = fields.get(name, usual)
            lies = image or _read(key, tree, partial(read_picture, image_size=side))
            value = _read(key, tree, lambda content, own=own, lies=lies: own.read(content, lies))
            found[name] = own.collate([value], [View()], side)
    return found


def _read(key: str, tree: Mapping[str, Any], decode: Any) -> Any:
    try:
        refuse_special(os.stat(tree[key]))  # reading a pipe, or a device, has no end
        return decode(Path(tree[key]).read_bytes())
    except BadSample as error:
        raise ValueError(f"{key}={tree[key]}: {error.kind} ({error})") from error


def asked_size(tree: Mapping[str, Any], model: Drawer) -> Size:
    """(height, width) of the images, px. Raises ValueError for one that a condition cannot stand beside."""
    side = tree["image_size"] or model.image_size
    size = (tree["height"] or side, tree["width"] or side)
    beside = [key for key in ("image", "mask", "map") if tree[key] is not None]
    if beside and model.beside_latent and size != (side, side):
        raise ValueError(f"{beside[0]}: stands beside the latent, so height and width must be image_size")
    return size


def collate(conditions: Collection[Mapping[str, Any]], device: Any) -> dict[str, Any]:
    """A batch of conditions: captions stay a list, labels become a tensor."""
    batch: dict[str, Any] = {key: [condition[key] for condition in conditions] for key in next(iter(conditions))}
    if "label" in batch:
        batch["label"] = torch.tensor(batch["label"], device=device)
    return batch
