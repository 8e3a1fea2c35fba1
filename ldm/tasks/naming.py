"""What lies on a canvas, by class: things are taken apart, each laid on white, and a classifier names it."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.data.making.cutouts import SPLITS, cutout, emoji
from ldm.tasks.finding import things

SIDE = 32  # px of a thing on white
MARGIN = 0.06  # of its longer side


def on_white(image: Tensor, inside: Tensor) -> Tensor:
    """What is `inside` (bool [H, W], not empty) of an image [3, H, W] in [-1, 1], fitted into [3, SIDE, SIDE]."""
    rows, columns = (inside.any(axis).nonzero().flatten() for axis in (1, 0))
    part = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    height, width = (own.stop - own.start for own in part)
    side = max(height, width)
    side += 2 * max(1, round(side * MARGIN))
    top, left = (side - height) // 2, (side - width) // 2
    square = torch.ones(3, side, side)
    square[:, top : top + height, left : left + width] = image[:, part[0], part[1]].where(inside[part], 1.0)
    return F.interpolate(square[None], (SIDE, SIDE), mode="bicubic", antialias=True)[0].clamp(-1, 1)


def known_things(shares: tuple[float, float], size: int) -> tuple[Tensor, Tensor]:
    """All built-in emoji, held-out ones too, [N, 3, SIDE, SIDE] as `on_white` lays them, and their groups [N].

    Each is first as small as on a canvas of `size` px, its longer side drawn from these `shares` of it.
    """
    draw = np.random.default_rng(0)
    pictures, labels = [], []
    for one in (one for split in SPLITS for own in emoji(split).values() for one in own):
        pixels, longer = cutout(one), draw.uniform(*shares) * size
        if pixels is not None:
            scale = longer / max(pixels.shape[:2])
            width, height = (max(1, round(side * scale)) for side in (pixels.shape[1], pixels.shape[0]))
            small = np.asarray(Image.fromarray(pixels, "RGBA").resize((width, height), Image.Resampling.LANCZOS))
            alpha = small[..., 3:].astype(np.float32) / 255
            mixed = torch.from_numpy(alpha * small[..., :3] + (1 - alpha) * draw.uniform(0, 255, 3).astype(np.float32))
            inside = torch.from_numpy(small[..., 3] >= min(128, small[..., 3].max()))
            pictures.append(on_white(mixed.permute(2, 0, 1) / 127.5 - 1, inside))
            labels.append(one.label)
    return torch.stack(pictures), torch.tensor(labels)


def named(images: Tensor, inside: Tensor, classify: Callable[[Tensor], Tensor]) -> Tensor:
    """Maps [N, H, W] of images [N, 3, H, W]: 0 is the ground, the class of `classify` and one what is `inside`.

    classify(things on white [M, 3, SIDE, SIDE]) is their classes [M].
    """
    own = [(place, part) for place, mask in enumerate(inside) for part in map(torch.from_numpy, things(mask))]
    found = torch.zeros(inside.shape, dtype=torch.long)
    if own:
        classes = classify(torch.stack([on_white(images[place], part) for place, part in own]))
        for (place, part), name in zip(own, classes, strict=True):
            found[place][part] = int(name) + 1
    return found
