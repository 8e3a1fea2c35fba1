"""Where things lie on a ground, and on a plain one which pixels are things: those that are far from it."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

Box = tuple[float, float, float, float]  # left, top, right, bottom in shares of the sides
FAR = 0.2  # of [-1, 1] in one channel at least: what is no ground
SPECK, SMALLEST = 3, 16  # px: a part that is smaller is none, and neither is a thing
WITHIN = 0.5  # of a part's box that lies in that of another: both are of one thing, as the eyes of a face


def ground_of(image: Tensor) -> Tensor:
    """The colour [3] of the ground of an image [3, H, W]: the median along its border."""
    border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], dim=1)
    return border.median(dim=1).values


def off_ground(image: Tensor) -> Tensor:
    """Where an image [3, H, W] in [-1, 1] is not ground, bool [H, W]."""
    return (image - ground_of(image)[:, None, None]).abs().amax(0) > FAR


def things_iou(images: Tensor, asked: Tensor) -> Tensor:
    """Intersection over union [N] of what is not ground in images [N, 3, H, W], and of masks, bool [N, H, W]."""
    there = torch.stack([off_ground(image) for image in images])
    inner, union = ((there & asked).flatten(1).sum(1), (there | asked).flatten(1).sum(1))
    return inner / union.clamp(min=1)


def found_boxes(image: Tensor) -> list[Box]:
    """The boxes of what is not ground in an image [3, H, W] in [-1, 1]."""
    far = off_ground(image)
    height, width = far.shape
    found = (_box(thing) for thing in things(far))
    return [(left / width, top / height, right / width, bottom / height) for left, top, right, bottom in found]


def things(inside: Tensor) -> list[np.ndarray]:
    """The pixels of each thing, bool [H, W], where pixels that are no ground are `inside` (bool [H, W])."""
    labels, _ = ndimage.label(inside.numpy())
    parts = [labels == place for place in np.flatnonzero(np.bincount(labels.flatten()) >= SPECK) if place]
    found: list[np.ndarray] = []
    for part in sorted(parts, key=np.sum, reverse=True):
        near = next((place for place, other in enumerate(found) if _lies_in(_box(part), _box(other))), len(found))
        found[near : near + 1] = [np.any([part, *found[near : near + 1]], axis=0)]
    return [thing for thing in found if thing.sum() >= SMALLEST]


def _box(part: np.ndarray) -> Box:
    """In px."""
    rows, columns = (np.flatnonzero(part.any(axis)) for axis in (1, 0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _lies_in(one: Box, other: Box) -> bool:
    return _common(one, other) >= WITHIN * (one[2] - one[0]) * (one[3] - one[1])


def _common(one: Box, other: Box) -> float:
    """The area of both."""
    sides = [max(0.0, min(one[i + 2], other[i + 2]) - max(one[i], other[i])) for i in (0, 1)]
    return sides[0] * sides[1]


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    inner = _common(one, other)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return inner / (sum(areas) - inner) if inner else 0.0


def best_overlaps(images: Tensor, asked: Sequence[Sequence[Box]]) -> Tensor:
    """For every box that was `asked` of every image the overlap of the box found that meets it best, in one row."""
    values = []
    for image, own in zip(images, asked, strict=True):
        there = found_boxes(image)
        values += [max((overlap(box, other) for other in there), default=0.0) for box in own]
    return torch.tensor(values)
