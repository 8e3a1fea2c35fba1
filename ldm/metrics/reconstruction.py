"""Errors of reconstructed images against their originals, one value an image, so that any mean is a plain mean."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ldm.networks.lpips import LPIPS


def bicubic(image: Tensor, f: int) -> Tensor:
    """The baseline that a first stage must beat: image [B, C, H, W] in [-1, 1] bicubically down by f, and up again."""
    small = F.interpolate(image, scale_factor=1 / f, mode="bicubic", antialias=True)
    return F.interpolate(small, image.shape[-2:], mode="bicubic").clamp(-1, 1)


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """PSNR [B] in dB of images [B, C, H, W] in [-1, 1]; infinite where they are equal."""
    return peak_signal_noise_ratio(image.float(), target.float(), data_range=2.0, reduction="none", dim=(1, 2, 3))


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """SSIM [B] (Wang et al. 2004, Gaussian window of 11 px, sigma 1.5) of images [B, C, H, W] in [-1, 1]."""
    return structural_similarity_index_measure(image.float(), target.float(), data_range=2.0, reduction="none")


def l1(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference [B] of images [B, C, H, W] in [-1, 1]."""
    return (image.float() - target.float()).abs().flatten(1).mean(1)


ERRORS = ("psnr", "ssim", "l1")


def errors_of(image: Tensor, target: Tensor) -> dict[str, Tensor]:
    """`ERRORS` [B] of reconstructions `image` in [-1, 1] of `target` [B, C, H, W] in [-1, 1]."""
    return dict(zip(ERRORS, (error(image, target) for error in (psnr, ssim, l1)), strict=True))


@torch.no_grad()
def reconstruction_errors(image: Tensor, target: Tensor, lpips: LPIPS) -> dict[str, Tensor]:
    """All errors [B] of reconstructions `image` (clamped to [-1, 1]) of `target` [B, 3, H, W] in [-1, 1]."""
    image = image.float().clamp(-1, 1)
    return {**errors_of(image, target), lpips.name: lpips(image, target.float())}
