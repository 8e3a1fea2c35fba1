"""Where things lie on a plain ground, by how far pixels are from it."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

Box = tuple[float, float, float, float]  # left, top, right, bottom in shares of the sides
FAR = 0.2  # of [-1, 1] in one channel at least: what is no ground
SMALLEST = 0.004  # share of the picture that a thing covers


def things(image: Tensor) -> np.ndarray:
    """Where an image [3, H, W] in [-1, 1] is not ground, bool [H, W]; the ground's colour is the border's median."""
    border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], dim=1)
    return (image - border.median(dim=1).values[:, None, None]).abs().amax(0).numpy() > FAR


def things_iou(images: Tensor, asked: Tensor) -> Tensor:
    """Intersection over union [N] of what is not ground in images [N, 3, H, W], and of masks, bool [N, H, W]."""
    there = torch.from_numpy(np.stack([things(image) for image in images]))
    inner, union = ((there & asked).flatten(1).sum(1), (there | asked).flatten(1).sum(1))
    return inner / union.clamp(min=1)


def found_boxes(image: Tensor) -> list[Box]:
    """The boxes of what is not ground in an image [3, H, W] in [-1, 1]."""
    far = things(image)
    parts, _ = ndimage.label(far, structure=np.ones((3, 3)))
    height, width = far.shape
    found = []
    for place, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
        if (parts[rows, columns] == place).sum() >= SMALLEST * far.size:
            found.append((columns.start / width, rows.start / height, columns.stop / width, rows.stop / height))
    return found


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    sides = [max(0.0, min(one[i + 2], other[i + 2]) - max(one[i], other[i])) for i in (0, 1)]
    inner = sides[0] * sides[1]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return inner / (sum(areas) - inner) if inner else 0.0


def best_overlaps(images: Tensor, asked: Sequence[Sequence[Box]]) -> Tensor:
    """For every box that was `asked` of every image the overlap of the box found that meets it best, in one row."""
    values = []
    for image, own in zip(images, asked, strict=True):
        there = found_boxes(image)
        values += [max((overlap(box, other) for other in there), default=0.0) for box in own]
    return torch.tensor(values)
