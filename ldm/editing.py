"""Sampling from an existing picture: image to image and inpainting, by models that were not trained for either.

SDEdit (arXiv:2108.01073), and a known region that is held at every step (as in arXiv:2201.09865, without its jumps back
in time). None of it is a condition: those that a model was trained with are read in ldm/given.py.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.sampling import Known, Start

STRENGTH = 0.8  # the default, where no region is held


@dataclass(frozen=True)
class Edit:
    """A `picture` [1, 3, H, W] in [-1, 1] to begin from, the share `strength` in (0, 1] of the steps to take again.

    The draw begins at the picture's latent under noise of the level from which floor(strength * num_steps) steps, at
    least one, are left. Strength 1 begins at noise alone, and is the plain sample, bit for bit. With a `hole` (bool
    [1, 1, H, W], or None), true where it is drawn anew, what has no pixel in it is held: its latent comes out as it
    went in. Raises ValueError for a strength outside its range, and for a hole of nothing.
    """

    picture: Tensor
    strength: float
    hole: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise UserError(f"strength={self.strength}: must be in (0, 1], the share of the steps to go again")
        if self.hole is not None and not bool(self.hole.any()):
            raise UserError("start_mask: nothing in it is white, so that nothing would be drawn anew")

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
