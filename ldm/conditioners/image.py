"""What has the shape of the image, as extra input channels: low resolution, masked images, semantic maps.

arXiv 2112.10752, sections 4.3.2, 4.4 and 4.5.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.conditioners.base import CHECKED, Batch, Conditioner, field
from ldm.conditioners.classes import check_classes
from ldm.diffusion.counter_random import normal, uniform
from ldm.errors import UserError
from ldm.networks.layers import sinusoid

LEVEL_WIDTH = 64  # of the vector that tells how noisy a small picture was made


class LowResolution(Conditioner):
    """batch["low_resolution"] [B, 3, H / factor, W / factor] in [-1, 1], beside a latent of H / latent_f, W / latent_f.

    As it is where these are one size. Larger than the latent, its pixels become channels, 3 (latent_f / factor)^2 of
    them; smaller, it is enlarged bicubically, as SR3 does beside pixels (arXiv 2104.07636). What makes it of the images
    of the training is chosen by derived=. The null is zero.

    `max_noise_level` above 0 is Imagen's noise conditioning augmentation (arXiv 2205.11487, section 2.3; eDiff-I has
    none): the small picture becomes cos(pi l / 2) of itself and sin(pi l / 2) of noise, and l is told to the network as
    a vector. In training l is uniform in [0, max_noise_level]; otherwise it is `noise_level`, or batch["low_noise"] [B]
    where that is there. All is drawn by sample number: in training by `seed`, of a sample by its own,
    batch["normal"](purpose, numbers, shape) where that is there.
    """

    key = "low_resolution"

    def __init__(
        self,
        latent_f: int,
        factor: int = 4,
        drop_prob: float = 0.0,
        seed: int = 0,
        max_noise_level: float = 0.0,
        noise_level: float = 0.1,
    ):
        if factor < 1:
            raise UserError(f"conditioner.low_resolution.factor={factor}: must be at least 1")
        if latent_f % factor and factor % latent_f:
            raise UserError(
                f"conditioner.low_resolution.factor={factor}: stands beside latents that are {latent_f} times smaller "
                "than the image; set it to a multiple or a divisor of that"
            )
        self.folded = max(1, latent_f // factor)  # pixels of a side that become channels
        if not 0 <= max_noise_level <= 1 or (max_noise_level and not 0 <= noise_level <= max_noise_level):
            raise UserError(
                f"conditioner.low_resolution: noise_level={noise_level:g} and max_noise_level={max_noise_level:g} must "
                "lie in [0, 1], the former at or below the latter"
            )
        vector = {"vector": LEVEL_WIDTH} if max_noise_level else {}
        super().__init__({"concat": 3 * self.folded**2, **vector}, drop_prob)
        self.factor = self.reads_reduced = factor
        self.reduces = latent_f
        self.seed = seed
        self.max_noise_level, self.noise_level = max_noise_level, noise_level
        self.may_read = ("low_noise",) if max_noise_level else ()

    def check(self, batch: Batch) -> None:
        level = batch["low_noise"] if self.may_read and "low_noise" in batch else torch.zeros(1)
        if not bool(((level >= 0) & (level <= self.max_noise_level)).all()):
            raise UserError(
                f"low_noise={level[0].item():g}: must lie in [0, {self.max_noise_level:g}], as in the training "
                "(conditioner.low_resolution.max_noise_level)"
            )

    def forward(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        low = field(batch, "low_resolution", "low_resolution").to(drop.device).float()
        given = {}
        if self.max_noise_level:
            level = self._levels(batch, len(low)).to(low)
            low = self._noised(low, level, batch["number"], batch.get("normal"))
            given["vector"] = sinusoid(1000 * level, LEVEL_WIDTH).masked_fill(drop[:, None], 0.0)
        if self.factor > self.reduces:
            low = F.interpolate(low, scale_factor=self.factor // self.reduces, mode="bicubic")
            low = low if self.max_noise_level else low.clamp(-1, 1)
        low = F.pixel_unshuffle(low, self.folded)
        return {"concat": low.masked_fill(drop.view(-1, 1, 1, 1), 0.0), **given}

    def _levels(self, batch: Batch, count: int) -> Tensor:
        """The noise level of each sample, [B]."""
        if self.training:
            return self.max_noise_level * uniform(self.seed, "low resolution level", batch["number"])[:, 0]
        self.check(batch)
        return batch["low_noise"] if "low_noise" in batch else torch.full((count,), self.noise_level)

    def _noised(self, low: Tensor, level: Tensor, numbers: Tensor, draw: Callable[..., Tensor] | None = None) -> Tensor:
        draw = draw or partial(normal, self.seed)
        noise = draw("low resolution noise", numbers.to(low.device), low.shape[1:])
        angle = (level * math.pi / 2).view(-1, 1, 1, 1)
        return angle.cos() * low + angle.sin() * noise


class MaskedImage(Conditioner):
    """The encoded image with its hole, and the hole: [B, C + 1, h, w] of C latent channels and a mask in {-1, 1}.

    batch["image"] [B, 3, H, W] and batch["mask"] [B, 1, H, W], 1 where the hole is; in training a field of the data, or
    made by derived= (holes, lama and others). The hole is black before it is encoded, by the model's own first stage.
    The null is zero. Samples keep the image where the hole is not.
    """

    key = "image"
    also = ("mask",)
    shares_first_stage = True

    def __init__(self, encode_image: Callable[[Tensor], Tensor], in_channels: int, drop_prob: float = 0.0):
        super().__init__({"concat": in_channels + 1}, drop_prob)
        self.encode_image = encode_image

    def check(self, batch: Batch) -> None:
        """A hole of nothing leaves nothing to draw, one of everything nothing to go by."""
        hole = batch["mask"] >= 0.5
        for what, amiss in (("nothing", ~hole.flatten(1).any(1)), ("everything", hole.flatten(1).all(1))):
            if bool(amiss.any()):
                raise UserError(f"hides {what}: the hole is white, and what is kept is black")

    def forward(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        image = field(batch, "image", "masked_image").to(drop.device)
        mask = field(batch, "mask", "masked_image").to(drop.device).float()
        latent = self.encode_image(image.where(mask < 0.5, -1.0))
        small = F.interpolate(mask, latent.shape[2:], mode="nearest") * 2 - 1
        return {"concat": torch.cat([latent, small], dim=1).masked_fill(drop.view(-1, 1, 1, 1), 0.0)}

    def kept(self, images: Tensor, batch: Batch) -> Tensor:
        image, mask = (field(batch, name, "masked_image").to(images) for name in ("image", "mask"))
        return images.where(mask >= 0.5, image)


class SemanticMap(Conditioner):
    """batch["segmentation"] [B, H, W], class numbers in [0, num_classes) -> [B, channels, H / factor, W / factor].

    One-hot, halved by bilinear interpolation until `factor` is reached, mapped by a learned 1x1 convolution: the
    published spatial rescaler. The null is zero.
    """

    key = "segmentation"

    def __init__(self, num_classes: int, channels: int = 3, factor: int = 4, drop_prob: float = 0.0):
        super().__init__({"concat": channels}, drop_prob)
        self.reduces = factor
        self.halvings = round(math.log2(factor)) if factor > 0 else 0
        if 2**self.halvings != factor:
            raise UserError(f"conditioner.semantic_map.factor={factor}: must be a power of 2")
        self.num_classes = num_classes
        self.channel_mapper = nn.Conv2d(num_classes, channels, 1, bias=False)

    def check_values(self, batch: Batch) -> None:
        check_classes(batch[self.key], self.num_classes, "segmentation", "conditioner.semantic_map.num_classes")

    def forward(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        classes = field(batch, "segmentation", "semantic_map").to(drop.device)
        if CHECKED not in batch:
            self.check_values(batch)
        maps = F.one_hot(classes, self.num_classes).permute(0, 3, 1, 2).float()
        for _ in range(self.halvings):
            maps = F.interpolate(maps, scale_factor=0.5, mode="bilinear")
        return {"concat": self.channel_mapper(maps).masked_fill(drop.view(-1, 1, 1, 1), 0.0)}
