"""How images come to a backbone's size. Numbers of different ways are not comparable: another than a backbone's usual
one stands in its name.
"""

import torch.nn.functional as F
from torch import Tensor
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x


def bicubic(images: Tensor, size: int) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1] -> [B, 3, size, size] in [-1, 1], bicubic and antialiased, without rounding."""
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bicubic", antialias=True)
    return images.clamp(-1, 1)


def tensorflow(images: Tensor, size: int) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1] -> [B, 3, size, size] in [0, 255]: of 8 bits, and bilinear as in TensorFlow 1.

    Not antialiased. It is what the published FID, Inception score, precision and recall were measured with.
    """
    return interpolate_bilinear_2d_like_tensorflow1x(eight_bit(images), size=(size, size), align_corners=False)


def clean(images: Tensor, size: int) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1] -> [B, 3, size, size] in [0, 255]: of 8 bits, then bicubic as Pillow's on floats.

    Parmar et al. 2022, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation": clean-fid's mode `clean`.
    """
    return F.interpolate(eight_bit(images), (size, size), mode="bicubic", antialias=True).clamp(0, 255)


def clean_signed(images: Tensor, size: int) -> Tensor:
    """As `clean`, in [-1, 1]."""
    return clean(images, size) / 127.5 - 1


def eight_bit(images: Tensor) -> Tensor:
    """Images in [-1, 1] -> whole numbers 0 ... 255, as floats."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round()
