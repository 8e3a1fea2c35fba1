"""Sampling from an existing picture: image to image, inpainting, outpainting, by models trained for none of them.

SDEdit (arXiv:2108.01073), and a known region that is held at every step (as in arXiv:2201.09865, whose jumps back in
time are sampler=repaint). None of it is a condition: those that a model was trained with are read in ldm/given.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.sampling import Known, Start

STRENGTH = 0.8  # the default, where no region is held


@dataclass(frozen=True)
class Edit:
    """A `picture` [1, 3, H, W] in [-1, 1] to begin from, the share `strength` in [0, 1] of the steps to take again.

    The draw begins at the picture's latent under noise of the level from which floor(strength * num_steps) steps, at
    least one, are left. Strength 1 begins at noise alone, and is the plain sample, bit for bit; 0 draws nothing, and is
    the picture. With a `hole` (bool [1, 1, H, W], or None), true where it is drawn anew, what has no pixel in it is
    held: its latent comes out as it went in, and its pixels are the picture's. Raises ValueError for a strength outside
    its range, for a hole of nothing, and for one that nothing is to be drawn in.
    """

    picture: Tensor
    strength: float
    hole: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength={self.strength}: must be in [0, 1], the share of the steps to go again")
        if self.hole is not None and not bool(self.hole.any()):
            raise UserError("start_mask: nothing in it is white, so that nothing would be drawn anew")
        if self.hole is not None and self.strength == 0:
            raise UserError("strength=0: draws nothing, where start_mask= or canvas= says what is drawn; leave one out")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, px."""
        return self.picture.shape[-2], self.picture.shape[-1]

    def resized(self, size: tuple[int, int]) -> "Edit":
        """The same of a picture of `size`, (height, width) px; a pixel of it is hole if any that it is made of is."""
        if size == self.size:
            return self
        picture = F.interpolate(self.picture, size, mode="bicubic", antialias=True).clamp(-1, 1)
        hole = None if self.hole is None else F.adaptive_max_pool2d(self.hole.float(), size) > 0
        return replace(self, picture=picture, hole=hole)

    def begin(self, first_stage: nn.Module, sigmas: Tensor, device: torch.device) -> tuple[Start | None, Known | None]:
        """The start of `draw` on `sigmas` [num_steps + 1], and the latents it holds fixed, on `device`.

        The latent is the mode of its posterior. Raises ValueError for a first stage that has no latents of pictures.
        """
        if first_stage.key != "image" or first_stage.spec.kind != "grid":
            raise UserError(f"start: the first stage of this model encodes {first_stage.key!r}, not pictures")
        x0 = first_stage.encode(self.picture.to(device))
        num_steps = len(sigmas) - 1
        left = max(math.floor(self.strength * num_steps + 1e-9), 1)
        start = None if self.strength == 1 else Start(x0, sigmas[num_steps - left].item())
        if self.hole is None:
            return start, None
        return start, Known(x0, F.max_pool2d(self.hole.to(x0), first_stage.spec.f) > 0)

    def put(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] with the picture's own pixels where they were not drawn anew."""
        if self.strength == 0:
            return self.picture.to(images).expand_as(images)
        if self.hole is None:
            return images
        return torch.where(self.hole.to(images.device), images, self.picture.to(images))


def on_canvas(picture: Tensor, hole: Tensor | None, borders: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A picture [1, 3, H, W] and its hole, with `borders` (top, right, bottom, left; px) around it: all of them hole.

    What the borders hold until they are drawn is the nearest pixel of the picture, so that the latents beside them are
    as if it went on. Raises ValueError for borders that are not of such a canvas.
    """
    if len(borders) != 4 or min(borders) < 0 or not any(borders):
        raise UserError(
            f"canvas={list(borders)}: expected [top,right,bottom,left], px to draw around the picture, one above 0"
        )
    top, right, bottom, left = borders
    inner = torch.zeros_like(picture[:, :1], dtype=torch.bool) if hole is None else hole
    around = (left, right, top, bottom)
    return F.pad(picture, around, mode="replicate"), F.pad(inner, around, value=True)
