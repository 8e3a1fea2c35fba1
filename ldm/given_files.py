"""The files that a sample is given: read by the run's own fields, as its training data were, and the size they set.

No kind of condition is known here. What there is to ask for is checked in ldm/given.py.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.data import rasters
from ldm.data.classes import class_names
from ldm.data.decoding import decode_image, read_picture
from ldm.data.errors import BadSample
from ldm.data.fields import Derived, Field
from ldm.data.image_bytes import is_lossy
from ldm.data.making.files import refuse_special
from ldm.data.module import ShardData
from ldm.data.transforms import View, to_tensor
from ldm.drawer import Drawer
from ldm.errors import UserError
from ldm.frames import Frame, check_bounded, size_by, tell_changes
from ldm.sampling import Sampling

log = logging.getLogger(__name__)

# Short keys of sample.py and the field of a batch that each fills: by a file, or by the value itself.
FILES = {
    "image": "image", "mask": "mask", "low": "low_resolution", "map": "segmentation", "boxes": "layout",
    "neighbours": "embeddings", "style": "style",
}  # fmt: skip
VALUES = {
    "prompt": "caption", "prompts": "caption", "negative_prompt": "caption", "label": "label", "target": "target",
    "low_noise": "low_noise",
}  # fmt: skip


@dataclass(frozen=True)
class Given:
    """Fields of a batch of one that were `read`, and those that are made of its image for each sample again.

    `drawing` shows what was read on an image, None if nothing of it is to be seen there.
    """

    read: Mapping[str, Any] = field(default_factory=dict)
    derived: Mapping[str, Derived] = field(default_factory=dict)
    drawing: Callable[[Image.Image], Image.Image] | None = None

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


def read_picture_file(key: str, path: str) -> np.ndarray:
    """The pixels of an image file, uint8 [H, W, 3], upright. Raises ValueError, or OSError, naming `key`."""
    with naming(key, path):
        return np.asarray(decode_image(content_of(key, path)))


def content_of(key: str, path: str) -> bytes:
    """The bytes of a file. Raises OSError naming `key` if it is not there, ValueError for what has no end."""
    with naming(key, path):
        try:
            refuse_special(os.stat(path))  # reading a pipe, or a device, has no end
            return Path(path).read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(f"{key}={path}: no such file") from None
        except OSError as error:  # a loop of links, or no permission
            raise UserError(f"{key}={path}: {(error.strerror or str(error)).lower()}") from error


@contextmanager
def naming(key: str, path: str) -> Iterator[None]:
    """Turn BadSample into an error that names the `key` and its file."""
    try:
        yield
    except BadSample as error:
        raise UserError(f"{key}={path}: {error.kind} ({error})") from error


def check_files(tree: Mapping[str, Any], trained_on: Callable[[], ShardData | None]) -> None:
    """Read all files that `tree` names once, by the fields of what a run was trained on, before its model is loaded.

    Raises ValueError for what cannot be read or is not meant, OSError for a file that is not there.
    """
    for key in ("target", "start", "start_mask"):
        if tree[key] is not None:
            read_picture_file(key, tree[key])
    data = trained_on() if files_of(tree) else None
    if data is None:
        return
    image = None
    side = tree["image_size"] or data.framing.window
    for name, (key, path) in _image_first(files_of(tree)).items():
        reader, content = reader_of(data, name, key), content_of(key, path)
        with naming(key, path):
            image = read_picture(content, side) if name == "image" else image
            lies = _lies(reader, content, image, side)
            _read(reader, content, lies if lies is None or not reader.reduces else rasters.framed(lies, lies.upright))


def _image_first(files: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """What belongs to an image is read after it."""
    return {**({"image": files["image"]} if "image" in files else {}), **files}


def made_of_image(model: Drawer, files: Mapping[str, Any]) -> list[str]:
    """Fields that the model reads, that are not given and that its run makes of an image."""
    return [name for name in model.data.keys.from_image if name in model.fields - files.keys()]


def reader_of(data: ShardData, name: str, key: str) -> Field:
    """What reads a file for the field `name`. Raises ValueError, naming its `key`, if nothing does."""
    keys = data.keys
    reader = keys.reader(name)
    if reader is None:
        raise UserError(
            f"{key}: this model reads no {name}: nothing in the data of its run does, which has "
            f"{', '.join(keys.yields)}"
        )
    return reader


def asked_frame(tree: Mapping[str, Any], model: Drawer, sampling: Sampling) -> Frame:
    """The size of the images: that of a file that stands beside the latent, as `tree` changes it, or the asked one.

    image= is resized to the training size unless `tree` says another; what the network sees as it is (a map, a small
    picture) is not. Raises ValueError for a size that does not fit a condition, or that would be too large.
    """
    side, files = tree["image_size"] or model.image_size, files_of(tree)
    asked = (tree["height"] or side, tree["width"] or side)
    beside = [name for name in files if name in model.beside_latent]
    if "image" in files and model.beside_latent & {"image", *made_of_image(model, files)}:
        beside = ["image", *beside]
    if not beside:
        return Frame(asked, asked)
    name = beside[0]
    key, path = files[name]
    reduces = reader_of(model.data, name, key).reduces
    if reduces is None:  # a field of a plugin that reads squares
        if asked != (side, side):
            raise UserError(f"{key}: stands beside the latent, so height and width must be image_size")
        return Frame(asked, asked)
    with naming(key, path):
        width, height = read_picture(content_of(key, path), side).upright
    size = size_by((width * reduces, height * reduces), tree, side, resized=name == "image")
    check_bounded(size, f"{key}={path}")
    if name != "image" and reduces > 1 and (height > size[0] or width > size[1]):
        raise UserError(
            f"{key}={path}: has {width} x {height} px, and is larger than the images, {size[1]} x {size[0]}; without "
            f"image_size=, height= and width= it makes {width * reduces} x {height * reduces}"
        )
    return Frame(size, model.drawable(size, sampling), by_file=True)


def read_given(tree: Mapping[str, Any], model: Drawer, frame: Frame) -> Given:
    """The files that `tree` names as fields of a batch of one: what lies on the image laid on its `frame`, the rest cut
    as the training's own was.

    What else the model reads and its run makes of images comes of image=. target, alone, is as large as its file.
    Raises ValueError if one is broken or of another shape than the image, OSError if it is not there.
    """
    side, found = tree["image_size"] or model.image_size, {}
    if tree["target"] is not None:
        found["target"] = to_tensor([read_picture_file("target", tree["target"])])
    if tree["low_noise"] is not None:
        found["low_noise"] = torch.tensor([tree["low_noise"]], dtype=torch.float32)
    files = files_of(tree)
    if not files:
        return Given(found)
    derived = model.data.keys.derived
    made = made_of_image(model, files) if "image" in files else []
    again = {name: files["image"] for name in made if name not in derived}
    on_frame = {"image", *model.beside_latent} if frame.by_file else set()
    names = class_names(model.data.training_set.train)
    image = drawing = None
    for name, (key, path) in _image_first({**files, **again}).items():
        reader, content = reader_of(model.data, name, key), content_of(key, path)
        clean = derived.get(name)
        if clean is not None and clean.reduces and not clean.degrades and is_lossy(content):
            log.warning(
                "%s=%s: is compressed as a JPEG is, and %s was trained on clean small pictures alone; a model trained "
                "with derived=[degraded] or [bsrgan_light] knows such files", key, path, model.name,
            )  # fmt: skip
        with naming(key, path):
            image = read_picture(content, side) if name == "image" else image
            if name in on_frame and reader.reduces is not None:
                picture = rasters.framed(image or read_picture(content, side), frame.size[::-1])
                if image is None or name == "image":
                    tell_changes(f"{key}={path}", picture, None if name == "image" else reader.reduces)
                value = _read(reader, content, picture)
                batch = reader.collate([value], [View(whole=True)], min(frame.size))
                found[name] = frame.filled(batch, reader.reduces)
            else:
                value = _read(reader, content, _lies(reader, content, image, side))
                found[name] = reader.collate([value], [View()], side)
        drawing = drawing or reader.drawing(value, names)
    return Given(found, {name: derived[name] for name in made if name in derived}, drawing)


def _lies(reader: Field, content: bytes, image: rasters.Picture | None, side: int) -> rasters.Picture | None:
    """How a file lies on a square of the training's size."""
    if not reader.lies_on_picture:
        return None
    return image or _own(content, side)


def _read(reader: Field, content: bytes, lies: rasters.Picture | None) -> Any:
    value = reader.read(content, lies)
    unmeant = reader.unmeant(value)
    if unmeant:
        raise BadSample("not meant", unmeant)
    return value


def _own(content: bytes, side: int) -> rasters.Picture:
    """The geometry of a file that is a picture itself; others, such as boxes, refer to the square that is made."""
    try:
        return read_picture(content, side)
    except BadSample:
        return rasters.picture((side, side), 1, side)
