"""The first stage as stage two sees it: whitened latents in and out, frozen, with a spec that travels with them.

It neither trains nor loads anything: an autoencoder, a regulariser and measured statistics are handed to it.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.first_stage.spec import LatentSpec
from ldm.first_stage.tiling import tiled


class FirstStage(nn.Module):
    """Frozen autoencoder and regulariser with per-channel whitening (z - mean) / std.

    `mean` and `std` [C] are those of `regularizer.sample` over the training images. Set `tile` (px, a multiple of 4 f)
    to encode and decode larger images tile by tile, overlapping by a quarter.
    """

    key = "image"  # the field of the batch that it encodes
    tile: int | None = None

    def __init__(
        self,
        autoencoder: nn.Module,
        regularizer: nn.Module,
        mean: Sequence[float] | Tensor,
        std: Sequence[float] | Tensor,
        fingerprint: str,
    ):
        super().__init__()
        channels = regularizer.latent_channels
        self.spec = _spec(autoencoder.f, channels, mean, std, fingerprint)
        self.autoencoder = autoencoder
        self.regularizer = regularizer
        self.num_codes = regularizer.num_codes
        self.register_buffer("mean", self.spec.per_channel(torch.tensor(self.spec.mean)))
        self.register_buffer("std", self.spec.per_channel(torch.tensor(self.spec.std)))
        self.requires_grad_(False)
        self.eval()

    def moments(self, image: Tensor) -> Tensor:
        """Image [B, 3, H, W] in [-1, 1] -> h [B, moment_channels, H / f, W / f], all that a latent is drawn from."""
        if self.tile is None:
            return self.autoencoder.encode(image).float()
        f = self.spec.f
        if any(side % f for side in image.shape[-2:]):
            raise UserError(f"image of {tuple(image.shape[-2:])}: height and width must be multiples of f = {f}")
        return tiled(self.autoencoder.encode, image, self.tile, self.tile // 4, Fraction(1, f)).float()

    def sample(self, h: Tensor, noise: Tensor | None = None) -> Tensor:
        """h, and noise [B, C, H / f, W / f] or None for the mode -> whitened z of that shape."""
        return (self.regularizer.sample(h, noise) - self.mean) / self.std

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Image [B, 3, H, W] in [-1, 1] -> whitened z [B, C, H / f, W / f]."""
        return self.sample(self.moments(image), noise)

    def decode(self, z: Tensor) -> Tensor:
        """Whitened z [B, C, h, w] -> image [B, 3, h * f, w * f], about in [-1, 1]; differentiable in z."""
        z = self.regularizer.quantise(z * self.std + self.mean)
        if self.tile is None:
            return self.autoencoder.decode(z).float()
        if self.tile % (4 * self.spec.f):
            raise UserError(f"tile={self.tile}: must be a multiple of 4 f = {4 * self.spec.f}")
        tile = self.tile // self.spec.f
        return tiled(self.autoencoder.decode, z, tile, tile // 4, Fraction(self.spec.f)).float()


class Identity(nn.Module):
    """f = 1: pixels are the latent. The interface of `FirstStage`; there is nothing in it to train, nor to tile.

    Raises ValueError for anything but images [B, C, H, W] of its number of channels.
    """

    key = "image"
    tile: int | None = None
    num_codes = 0

    def __init__(self, channels: int = 3, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)):
        super().__init__()
        mean, std = (list(values) * (channels if len(values) == 1 else 1) for values in (mean, std))
        self.spec = _spec(1, channels, mean, std, "identity")
        self.register_buffer("mean", self.spec.per_channel(torch.tensor(self.spec.mean)), persistent=False)
        self.register_buffer("std", self.spec.per_channel(torch.tensor(self.spec.std)), persistent=False)

    def moments(self, image: Tensor) -> Tensor:
        """The image [B, C, H, W] itself."""
        return self._image(image)

    def sample(self, h: Tensor, noise: Tensor | None = None) -> Tensor:
        """h whitened; `noise` is not used."""
        return (self._image(h) - self.mean) / self.std

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """The image [B, C, H, W] whitened."""
        return self.sample(self.moments(image), noise)

    def decode(self, z: Tensor) -> Tensor:
        """The inverse of `encode`."""
        return self._image(z) * self.std + self.mean

    def _image(self, image: Tensor) -> Tensor:
        if image.ndim != 4:
            raise UserError(
                f"first_stage=null models images [B, C, H, W] as they are, and got {list(image.shape)}; anything else "
                "needs a first stage of its own"
            )
        if image.shape[1] != self.spec.channels:
            raise UserError(f"image has {image.shape[1]} channels, the first stage takes {self.spec.channels}")
        return image


def reconstruct(autoencoder: nn.Module, regularizer: nn.Module, image: Tensor) -> Tensor:
    """The reconstruction [B, 3, H, W], clamped to [-1, 1]: the posterior's mode, or the nearest codes, decoded."""
    z = regularizer.sample(autoencoder.encode(image), None)
    return autoencoder.decode(regularizer.quantise(z)).float().clamp(-1, 1)


def _spec(
    f: int, channels: int, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor, fingerprint: str
) -> LatentSpec:
    mean, std = (tuple(torch.as_tensor(values, dtype=torch.float64, device="cpu").tolist()) for values in (mean, std))
    if len(mean) != channels or len(std) != channels:
        raise UserError(f"latent mean and std: {len(mean)} and {len(std)} values for {channels} channels")
    if not all(0 < value < float("inf") for value in std):
        raise UserError(f"latent std {std}: must be positive and finite; a constant channel cannot be whitened")
    return LatentSpec(f, channels, "grid", False, mean, std, fingerprint)


@torch.no_grad()
def moments_of(first_stage: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """What latents of a batch are drawn from: its "moments" or "codes" if it has them, else those of its image, or of
    what else the first stage encodes.
    """
    if "codes" in batch:
        return first_stage.regularizer.lookup(batch["codes"].int())
    return batch["moments"].float() if "moments" in batch else first_stage.moments(batch[first_stage.key])
