"""From one draw to another: noise on the great circle between that of two seeds, which stays standard normal."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.diffusion.counter_random import normal
from ldm.errors import UserError


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """a [B, ...] at share 0, b at 1 (`share` [B]), both exactly, and between them a turn at constant speed.

    Spherical linear interpolation (Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985). Of two
    independent standard normals it is one again, nearly: a straight line would be too quiet in its middle.
    """
    cosine = F.cosine_similarity(a.flatten(1).double(), b.flatten(1).double())
    angle = cosine.clamp(-1, 1).acos().clamp_min(1e-9)  # of a and itself: a straight line, as the limit is
    parts = [((1 - share) * angle).sin() / angle.sin(), (share * angle).sin() / angle.sin()]
    first, second = (part.to(a.dtype).view(-1, *[1] * (a.ndim - 1)) for part in parts)
    return first * a + second * b


@dataclass(frozen=True)
class Frames:
    """Draws as counter_random.normal does, but for sample number n the frame n of `num_frames`, from 0 on.

    Frames go from the draw of number 0 under the seed asked for to that under `to_seed`. Raises ValueError for fewer
    than two.
    """

    to_seed: int
    num_frames: int

    def __post_init__(self) -> None:
        if self.num_frames < 2:
            raise UserError(
                f"to_seed={self.to_seed}: needs num_images=2 at least, the first and the last of the frames"
            )

    def __call__(self, seed: int, purpose: str, numbers: Tensor, shape: tuple[int, ...], stream: int = 0) -> Tensor:
        """Standard normals [B, *shape] for the frames `numbers` [B]."""
        zeros = torch.zeros_like(numbers)
        first, last = (normal(end, purpose, zeros, shape, stream) for end in (seed, self.to_seed))
        return slerp(first, last, numbers.double() / (self.num_frames - 1))
