"""The conditions given for a sample, checked against those a model reads: none is ignored, none needed is missing.

A file is read by the run's own field of the batch, as its training data were; no kind of condition is known here.
"""

import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.data import rasters
from ldm.data.classes import class_names
from ldm.data.decoding import decode_image, read_picture
from ldm.data.errors import BadSample
from ldm.data.fields import Derived, Field
from ldm.data.making.files import refuse_special
from ldm.data.module import ShardData
from ldm.data.transforms import View, to_tensor
from ldm.drawer import Drawer
from ldm.errors import UserError
from ldm.generate import Size
from ldm.sampling import Sampling

log = logging.getLogger(__name__)

# Short keys of sample.py and the field of a batch that each fills: by a file, or by the value itself.
FILES = {"image": "image", "mask": "mask", "low": "low_resolution", "map": "segmentation", "boxes": "layout"}
VALUES = {"prompt": "caption", "prompts": "caption", "negative_prompt": "caption", "label": "label", "target": "target"}
WAYS = {"caption": "prompt=TEXT", "label": "label=N", "mask": "mask=FILE, white in the hole",
        **{name: f"{key}=FILE" for key, name in FILES.items() if key != "mask"}}  # fmt: skip


@dataclass(frozen=True)
class Given:
    """Fields of a batch of one that were `read`, and those that are made of its image for each sample again."""

    read: Mapping[str, Any] = field(default_factory=dict)
    derived: Mapping[str, Derived] = field(default_factory=dict)

    def batch(self, numbers: Tensor) -> dict[str, Any]:
        """The fields for samples of these numbers, int64 [B], on their device."""
        count = len(numbers)
        found = {name: _repeated(value, count, numbers.device) for name, value in self.read.items()}
        for name, made in self.derived.items():
            windows = self.read["image"].expand(count, -1, -1, -1)
            found[name] = made.make(windows, numbers.cpu()).to(numbers.device)
        return found


def _repeated(value: Any, count: int, device: torch.device) -> Any:
    return value.to(device).expand(count, *value.shape[1:]) if isinstance(value, Tensor) else value * count


def files_of(tree: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """{field: (key, file)} of all files that `tree` gives. Raises ValueError for a field that is given twice."""
    found = {f"given.{name}": (name, path) for name, path in tree["given"].items()}
    found |= {key: (name, tree[key]) for key, name in FILES.items() if tree[key] is not None}
    files: dict[str, tuple[str, str]] = {}
    for key, (name, path) in found.items():
        if name in files:
            raise UserError(f"{key}: {files[name][0]} gives {name!r} too; give it once")
        files[name] = (key, path)
    for key, name in VALUES.items():
        if name in files and tree[key] is not None and key != "negative_prompt":
            raise UserError(f"{key}: {files[name][0]} gives {name!r} too; give it once")
    return files


def check_given(tree: Mapping[str, Any], model: Drawer, sampling: Sampling, captioned: bool) -> None:
    """Check the keys of `tree` against a model; `captioned`: whether there is a prompt, perhaps an empty one.

    Raises ValueError for a condition that would not be read, for one that is needed, or for guidance against a null
    that no training saw.
    """
    files = files_of(tree)
    use, used = sampling.use_conditions, model.conditions(sampling)
    fields = set().union(sampling.fields, *used.values())
    made = set(_made_of_image(model, files)) if "image" in files else set()
    asked = {key: name for key, name in VALUES.items() if tree[key] not in (None, "")}
    for key, name in {**asked, **{key: name for name, (key, _) in files.items()}}.items():
        if name not in fields and not (name == "image" and made):
            given = f"it is conditioned on {', '.join(sorted(fields))}" if fields else "it has no conditions"
            without = f" with use_conditions=[{','.join(use)}]" if use and name in model.fields else ""
            raise UserError(f"{key}: this model{without} reads no {name}; {given}")
    present = {*asked.values(), *files, *made, *(["caption"] if captioned and "caption" not in files else [])}
    for name, needed in model.missing(dict.fromkeys(present), sampling).items():
        raise UserError(f"conditioner {name} needs {needed!r}: give {WAYS.get(needed, f'given.{needed}=FILE')}")
    if captioned and tree["prompt"] is None and tree["prompts"] is None and "caption" not in files:
        _check_without_prompt(model, sampling)
    negative = negatives(tree)
    left = model.left_out(sampling, negative)
    if negative and not left & {name for name, own in used.items() if "caption" in own}:
        raise UserError(
            "negative_prompt: would not be read: it is for the text that guidance leaves out, and guidance.scale=1, "
            "autoguidance and scales without the text leave none out"
        )


def _check_without_prompt(model: Drawer, sampling: Sampling) -> None:
    """Say that a model which reads text is sampled without; UserError for one that was never trained so."""
    always = model.conditions(replace(sampling, use_conditions=()))
    if "caption" in set().union(*always.values()):
        raise UserError(
            "prompt: this model was never trained without text; give prompt=TEXT, or prompt= for an empty one"
        )
    if "caption" in set().union(*model.conditions(sampling).values()):
        log.warning("%s: sampled without a prompt, for the empty text; prompt=TEXT gives it one", model.name)


def _made_of_image(model: Drawer, files: Mapping[str, Any]) -> list[str]:
    """Fields that the model reads, that are not given and that its run makes of an image."""
    return [name for name in model.data.keys.from_image if name in model.fields - files.keys()]


def negatives(tree: Mapping[str, Any]) -> dict[str, str]:
    """The fields of negative conditions, which guidance leads away from."""
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
    raise UserError(f"label={label!r}: expected int, or the name of a class, {known}")


def read_given(tree: Mapping[str, Any], model: Drawer) -> Given:
    """The files that `tree` names as fields of a batch of one, read and cut as the training's own were.

    What else the model reads and its run makes of images comes of image=. target, alone, is as large as its file.
    Raises ValueError if one is broken or of another shape than the image, OSError if it is not there.
    """
    side, found = tree["image_size"] or model.image_size, {}
    if tree["target"] is not None:
        found["target"] = read_image("target", tree["target"])
    files = files_of(tree)
    if not files:
        return Given(found)
    keys = model.data.keys
    for name, (key, _) in files.items():
        if keys.reader(name) is None:
            raise UserError(f"{key}: nothing in the data of this run reads {name!r}; it has {', '.join(keys.yields)}")
    made = _made_of_image(model, files) if "image" in files else []
    again = {name: files["image"] for name in made if name in keys.read}
    image = _named(*files["image"], lambda content: read_picture(content, side)) if "image" in files else None
    for name, (key, path) in {**files, **again}.items():
        found[name] = _named(key, path, lambda content, name=name: _value(keys.reader(name), content, image, side))
    return Given(found, {name: keys.derived[name] for name in made if name in keys.derived})


def _value(reader: Field, content: bytes, image: rasters.Picture | None, side: int) -> Any:
    lies = None
    if reader.lies_on_picture:
        lies = image or _own(content, side)
    return reader.collate([reader.read(content, lies)], [View()], side)


def _own(content: bytes, side: int) -> rasters.Picture:
    """The geometry of a file that is a picture itself; others, such as boxes, refer to the square that is made."""
    try:
        return read_picture(content, side)
    except BadSample:
        return rasters.picture((side, side), 1, side)


def _named(key: str, path: str, decode: Any) -> Any:
    try:
        refuse_special(os.stat(path))  # reading a pipe, or a device, has no end
        return decode(Path(path).read_bytes())
    except BadSample as error:
        raise UserError(f"{key}={path}: {error.kind} ({error})") from error


def asked_size(tree: Mapping[str, Any], model: Drawer) -> Size:
    """(height, width) of the images, px. Raises ValueError for a size that does not fit a condition."""
    side = tree["image_size"] or model.image_size
    size = (tree["height"] or side, tree["width"] or side)
    beside = [key for key, _ in files_of(tree).values()]
    if beside and model.beside_latent and size != (side, side):
        raise UserError(f"{beside[0]}: stands beside the latent, so height and width must be image_size")
    return size


def read_image(key: str, path: str) -> Tensor:
    """An image file under `key` as it is, [1, 3, H, W] in [-1, 1]. Raises ValueError if it is broken."""
    return to_tensor([np.asarray(_named(key, path, decode_image))])


def collate(conditions: Collection[Mapping[str, Any]], device: Any) -> dict[str, Any]:
    """A batch of conditions: captions stay a list, labels become a tensor."""
    batch: dict[str, Any] = {key: [condition[key] for condition in conditions] for key in next(iter(conditions))}
    if "label" in batch:
        batch["label"] = torch.tensor(batch["label"], device=device)
    return batch
