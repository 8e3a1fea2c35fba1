"""What spoils a picture on its way to a small file: blur, lost pixels, noise, JPEG. Pure functions, in no order.

Pictures are float32 [3, H, W] in [0, 1], and so are the results. All are BSRGAN's (arXiv 2103.14006, section 3) but the
sinc filter, which is Real-ESRGAN's (arXiv 2107.10833, section 3.3). Noise is drawn from the generator that is given.
"""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.signal import fftconvolve
from scipy.special import j1

Size = tuple[int, int]  # height, width
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)[:, None, None]


# Filters; kernels have an odd size, px, and pictures are mirrored at their border


def isotropic_blur(image: np.ndarray, size: int, std: float) -> np.ndarray:
    """Blurred by a Gaussian of `std` px."""
    return _filtered(image, _gaussian(size, (std**2, std**2)))


def anisotropic_blur(image: np.ndarray, size: int, variances: tuple[float, float], angle: float) -> np.ndarray:
    """Blurred by a Gaussian of `variances`, px^2, along axes that are turned by `angle`, radians."""
    return _filtered(image, _gaussian(size, variances, angle))


def sinc_filter(image: np.ndarray, size: int, cutoff: float) -> np.ndarray:
    """Without the frequencies above `cutoff`, radians a px, in any direction.

    It leaves ringing beside edges, as resizing and sharpening in cameras and on web pages do.
    """
    rows, columns = np.mgrid[:size, :size] - size // 2
    radius = np.maximum(np.hypot(rows, columns), 1e-6)
    return _filtered(image, cutoff * j1(cutoff * radius) / (2 * np.pi * radius))


def _gaussian(size: int, variances: tuple[float, float], angle: float = 0.0, centre: float = 0.0) -> np.ndarray:
    """[size, size], its middle moved by `centre` px down and right."""
    rows, columns = np.mgrid[:size, :size] - size // 2 - centre
    along = columns * np.cos(angle) + rows * np.sin(angle)
    across = rows * np.cos(angle) - columns * np.sin(angle)
    first, second = (max(variance, 1e-4) for variance in variances)
    return np.exp(-0.5 * (along**2 / first + across**2 / second))


def _filtered(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolved with the kernel over its sum."""
    reach = kernel.shape[0] // 2
    padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
    weights = (kernel / kernel.sum()).astype(np.float32)
    return fftconvolve(padded, weights[None], mode="valid", axes=(1, 2)).clip(0, 1)


# Sizes


def bilinear(image: np.ndarray, size: Size) -> np.ndarray:
    """Resized between the nearest pixels, however many are passed over: not antialiased."""
    return _interpolated(image, size, "bilinear")


def bicubic(image: np.ndarray, size: Size) -> np.ndarray:
    """Resized by cubics (a = -0.75) through the nearest 4 x 4 pixels: not antialiased."""
    return _interpolated(image, size, "bicubic")


def bicubic_antialiased(image: np.ndarray, size: Size) -> np.ndarray:
    """Resized by cubics (a = -0.5) as wide as what becomes a pixel."""
    return _interpolated(image, size, "bicubic", antialias=True)


def _interpolated(image: np.ndarray, size: Size, mode: str, antialias: bool = False) -> np.ndarray:
    found = F.interpolate(torch.from_numpy(image)[None], size, mode=mode, antialias=antialias)
    return found[0].clamp(0, 1).numpy()


def area(image: np.ndarray, size: Size) -> np.ndarray:
    """Resized to the means of the areas that become a pixel."""
    down, right = (_overlaps(old, new) for old, new in zip(image.shape[1:], size, strict=True))
    return (down @ image @ right.T).clip(0, 1)


def _overlaps(old: int, new: int) -> np.ndarray:
    """float32 [new, old]: the shares that the old pixels of a line have of each new one."""
    edges = np.arange(new + 1) * (old / new)
    pixels = np.arange(old)
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (shared.clip(0) / (old / new)).astype(np.float32)


def nearest(image: np.ndarray, factor: int, std: float) -> np.ndarray:
    """One of `factor` x `factor` pixels, after a Gaussian of `std` px that moves the middle of them onto it."""
    kernel = _gaussian(25, (std**2, std**2), centre=(1 - factor) / 2)
    return np.ascontiguousarray(_filtered(image, kernel)[:, ::factor, ::factor])


# Noise


INDEPENDENT = np.eye(3)
GREY = np.outer(np.ones(3), [1.0, 0.0, 0.0])  # one noise in all channels


def correlated(draws: np.random.Generator) -> np.ndarray:
    """[3, 3], a square root of a covariance of channels with random axes and variances in [0, 1]."""
    axes = np.linalg.qr(draws.random((3, 3)))[0]
    return axes * np.sqrt(draws.random(3))


def gaussian_noise(image: np.ndarray, draws: np.random.Generator, std: float, channels: np.ndarray) -> np.ndarray:
    """Noise of that `std`, of a range of 1, added; `channels` [3, 3] mixes it out of three independent ones."""
    return (image + _deviates(image, draws, std, channels)).clip(0, 1)


def speckle_noise(image: np.ndarray, draws: np.random.Generator, std: float, channels: np.ndarray) -> np.ndarray:
    """The same in proportion to the light."""
    return (image + image * _deviates(image, draws, std, channels)).clip(0, 1)


def _deviates(image: np.ndarray, draws: np.random.Generator, std: float, channels: np.ndarray) -> np.ndarray:
    noise = draws.standard_normal(image.shape, dtype=np.float32)
    return np.tensordot((std * channels).astype(np.float32), noise, axes=1)


def poisson_noise(image: np.ndarray, draws: np.random.Generator, photons: float, grey: bool) -> np.ndarray:
    """The picture counted in photons, of which white has so many; `grey`: the luminance's noise in all channels."""
    light = (image * LUMINANCE).sum(0, keepdims=True) if grey else image
    light = np.round(light.clip(0, 1) * 255) / 255
    counted = draws.poisson(light * photons) / photons
    return (image + (counted - light)).clip(0, 1).astype(np.float32)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Through a JPEG file of this quality, chroma halved."""
    file = io.BytesIO()
    pixels = np.round(image.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(pixels).save(file, "jpeg", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file), np.float32).transpose(2, 0, 1) / 255
