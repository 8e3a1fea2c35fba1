"""Held-out canvases as files: what is known of each of them is what samples are drawn from, and judged by."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.data.making.canvas_shards import parse
from ldm.data.making.canvases import Canvas, canvas, members
from ldm.data.module import ShardData
from ldm.data.paths import COMPOSED
from ldm.files import write_bytes
from ldm.images import save_image

Box = tuple[float, float, float, float]  # left, top, right, bottom in shares of the sides


def held_out_canvases(data: ShardData, count: int, **changed: Any) -> list[Canvas]:
    """The first `count` that a model holds out, or those of settings `changed` from them, such as their size."""
    return canvases_of(data, 0, count, **changed)


def canvases_of(data: ShardData, first: int, count: int, **changed: Any) -> list[Canvas]:
    """So many from number `first` on, of the settings that a model holds out canvases of, `changed`."""
    settings = replace(parse(str(data.validation).removeprefix(COMPOSED)).settings, **changed)
    return [canvas(settings, first + number) for number in range(count)]


def pixels(found: Sequence[Canvas]) -> Tensor:
    """Their images [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack([one.image for one in found])).permute(0, 3, 1, 2).float() / 127.5 - 1


def maps(found: Sequence[Canvas]) -> Tensor:
    """Their maps of class numbers, int64 [N, H, W]."""
    return torch.from_numpy(np.stack([one.groups for one in found])).long()


def boxes(one: Canvas) -> list[Box]:
    """Of its objects."""
    return [tuple(found["box"]) for found in one.objects]


def member_files(found: Sequence[Canvas], extension: str, folder: Path) -> list[str]:
    """A member of each, such as json or segmentation.png, as a file of its own."""
    paths = [folder / f"{place:04d}.{extension}" for place in range(len(found))]
    for path, one in zip(paths, found, strict=True):
        write_bytes(path, members(one)[extension])
    return [str(path) for path in paths]


def boxes_files(found: Sequence[Canvas], folder: Path) -> list[str]:
    """The objects of each and their boxes, as boxes= reads them."""
    paths = [folder / f"{place:04d}.boxes.json" for place in range(len(found))]
    for path, one in zip(paths, found, strict=True):
        objects = [{"category": item["category"], "box": item["box"]} for item in one.objects]
        write_bytes(path, json.dumps({"objects": objects}).encode())
    return [str(path) for path in paths]


def picture_files(images: Tensor, name: str, folder: Path) -> list[str]:
    """Images [N, C, H, W] in [-1, 1] as PNG files."""
    return [str(save_image(folder / f"{place:04d}.{name}.png", image)) for place, image in enumerate(images)]
