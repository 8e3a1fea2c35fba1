"""What image codecs make of the same images: the rate-distortion curves that a first stage is compared with."""

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.images import to_uint8
from ldm.metrics.reconstruction import bicubic, reconstruction_errors
from ldm.networks.lpips import LPIPS

QUALITIES = (1, 3, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)


@dataclass(frozen=True)
class Point:
    """Mean bits of an image and mean errors of its reconstruction under `name` at one setting."""

    name: str
    setting: str
    bits: float
    errors: dict[str, float]


def codec_curve(name: str, images: Tensor, lpips: LPIPS, qualities: Sequence[int] = QUALITIES) -> list[Point]:
    """JPEG or WebP (`name`) of images [N, 3, H, W] in [-1, 1] at each quality; bits are those of whole files."""
    arrays = to_uint8(images).permute(0, 2, 3, 1).numpy()
    points = []
    for quality in qualities:
        sizes, decoded = [], []
        for array in arrays:
            buffer = io.BytesIO()
            Image.fromarray(array).save(buffer, format=name, quality=quality)
            sizes.append(8 * buffer.tell())
            decoded.append(np.asarray(Image.open(buffer).convert("RGB")))
        outputs = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float() / 127.5 - 1
        points.append(Point(name, f"quality {quality}", float(np.mean(sizes)), _means(outputs, images, lpips)))
    return points


def bicubic_point(images: Tensor, f: int, lpips: LPIPS) -> Point:
    """Images brought down by f bicubically, stored in 24 bits a pixel, and up again."""
    num_values = images[0, :, ::f, ::f].numel()
    return Point("bicubic", f"f = {f}", 8.0 * num_values, _means(bicubic(images, f), images, lpips))


def at_bits(curve: Sequence[Point], bits: float) -> dict[str, float] | None:
    """Errors of a codec at `bits`, linear in the logarithm of the size between settings; None beyond its ends."""
    ordered = sorted(curve, key=lambda point: point.bits)
    for low, high in itertools.pairwise(ordered):
        if low.bits <= bits <= high.bits:
            span = math.log(high.bits / low.bits)
            share = math.log(bits / low.bits) / span if span else 0.0
            return {name: value + share * (high.errors[name] - value) for name, value in low.errors.items()}
    return None


def _means(output: Tensor, image: Tensor, lpips: LPIPS) -> dict[str, float]:
    found: dict[str, list[Tensor]] = {}
    for part, target in zip(output.split(64), image.split(64), strict=True):
        for name, values in reconstruction_errors(part, target, lpips).items():
            found.setdefault(name, []).append(values)
    return {name: torch.cat(values).clamp(max=99.0).mean().item() for name, values in found.items()}
