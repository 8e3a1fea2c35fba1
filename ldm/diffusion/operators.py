"""Measurements of an image: differentiable maps of images [B, 3, H, W] in [-1, 1], for guidance towards a target.

The transformations T of arXiv:2112.10752, appendix D.6; any other function of images serves as well.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.errors import UserError


def identity(image: Tensor) -> Tensor:
    """The image itself: its denoising, or variations on it."""
    return image


def bicubic(image: Tensor, factor: int) -> Tensor:
    """[B, 3, H, W] -> [B, 3, H / factor, W / factor], antialiased: super-resolution without training.

    Raises ValueError if `factor` does not divide the sides.
    """
    if factor < 1 or any(side % factor for side in image.shape[-2:]):
        raise UserError(f"operator.factor={factor}: must divide the sides of the image, {tuple(image.shape[-2:])}")
    size = [side // factor for side in image.shape[-2:]]
    return F.interpolate(image, size, mode="bicubic", antialias=True)


def blur(image: Tensor, std: float) -> Tensor:
    """[B, 3, H, W] under a Gaussian of `std` px, its borders repeated: sharpening a blurred picture without training.

    Raises ValueError for a `std` that is not above 0.
    """
    if not 0 < std < min(image.shape[-2:]):
        raise UserError(f"operator.std={std}: must be above 0 and below the sides of the image, px")
    radius = math.ceil(3 * std)
    places = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    weights = (-0.5 * (places / std).square()).softmax(0).expand(image.shape[1], 1, -1)
    for axis, around in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        kernel = weights.unsqueeze(5 - axis)
        image = F.conv2d(F.pad(image, around, mode="replicate"), kernel, groups=image.shape[1])
    return image


def grey(image: Tensor) -> Tensor:
    """[B, 3, H, W] -> its luma (ITU-R BT.601) in three equal channels: colouring."""
    weights = image.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (image * weights).sum(1, keepdim=True).expand_as(image)


def box(image: Tensor, top: float, left: float, height: float, width: float) -> Tensor:
    """The part of [B, 3, H, W] in a box, all four in shares of the image's sides: painting around what is known.

    Raises ValueError for a box that is empty or leaves the image.
    """
    sides = image.shape[-2:]
    edges = [(round(a * side), round((a + b) * side)) for a, b, side in zip((top, left), (height, width), sides,
                                                                            strict=True)]  # fmt: skip
    if any(not 0 <= start < end <= side for (start, end), side in zip(edges, sides, strict=True)):
        raise UserError(f"operator=box: {top=:g}, {left=:g}, {height=:g}, {width=:g} is no box inside the image")
    (first, last), (begin, end) = edges
    return image[..., first:last, begin:end]
