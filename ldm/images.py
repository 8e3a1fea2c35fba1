"""Image tensors in [-1, 1] to PNG files: one image, a grid of them, crisp enlargement, text kept inside the file.

Needs torch and Pillow only, so that sampling and training panels can use it without the rest of the report.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from ldm.errors import UserError
from ldm.files import write_bytes


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] -> 0..255, any shape, clamped; NaN becomes black: callers check for it first."""
    return images.detach().float().nan_to_num(nan=-1.0).clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def enlarge(images: Tensor, factor: int) -> Tensor:
    """[..., H, W] -> [..., factor H, factor W], each pixel a square: shows what the model made and nothing more."""
    if factor < 1:
        raise UserError(f"factor must be at least 1, got {factor}")
    return images.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


PADDING = 2  # px around each image of a grid


def grid_size(num_images: int, columns: int, size: Sequence[int], padding: int = PADDING) -> tuple[int, int]:
    """(height, width) of the `grid` of so many images of `size` (height, width)."""
    rows, (height, width) = -(-num_images // columns), size
    return rows * (height + padding) + padding, columns * (width + padding) + padding


def grid(images: Tensor, columns: int, padding: int = PADDING, background: float = 1.0) -> Tensor:
    """[B, C, H, W] -> [C, rows (H + padding) + padding, columns (W + padding) + padding], filled row by row.

    Missing images of the last row are `background`, in [-1, 1]; `columns` is the width even if there are fewer images.
    """
    if images.ndim != 4 or len(images) == 0:
        raise UserError(f"grid takes images [B, C, H, W] with B >= 1, got {list(images.shape)}")
    if columns < 1:
        raise UserError(f"columns must be at least 1, got {columns}")
    num_images, channels, height, width = images.shape
    sheet = images.new_full((channels, *grid_size(num_images, columns, (height, width), padding)), background)
    for place, image in enumerate(images):
        top = padding + place // columns * (height + padding)
        left = padding + place % columns * (width + padding)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def picture_of(image: Tensor, factor: int = 1) -> Image.Image:
    """[3, H, W] or [1, H, W] in [-1, 1], enlarged by `factor`."""
    pixels = enlarge(to_uint8(image), factor).permute(1, 2, 0).contiguous().cpu().numpy()
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def save_image(path: Path | str, image: Tensor, *, factor: int = 1, text: Mapping[str, object] | None = None) -> Path:
    """Save [3, H, W] or [1, H, W] in [-1, 1] as PNG, enlarged by `factor`; `text` (prompt, seed, ...) goes into it.

    The text is stored as UTF-8 chunks (iTXt), which `PIL.Image.open(path).text` gives back.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"images are saved as PNG: give {path.name!r} the ending .png")
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise UserError(f"save_image takes one image [3, H, W] or [1, H, W], got {list(image.shape)}")
    if not image.isfinite().all():
        raise UserError(f"{path}: not written, the image is not finite")
    picture = picture_of(image, factor)
    chunks = PngImagePlugin.PngInfo()
    for name, value in (text or {}).items():
        # A prompt from the command line may hold bytes that are no UTF-8 (surrogates to Python): they become "?".
        chunks.add_itxt(name, str(value).encode("utf-8", "replace").decode())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=chunks)
    return write_bytes(path, buffer.getvalue())
