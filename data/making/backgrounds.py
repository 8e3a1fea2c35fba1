"""Grounds of canvases: one pale colour, or a texture of two. Every one is drawn from numbers that are handed in."""

import colorsys
from collections.abc import Callable

import numpy as np
from PIL import Image

Draw = Callable[[int], np.ndarray]  # so many uniform numbers in [0, 1)


def plain(draw: Draw, height: int, width: int) -> np.ndarray:
    """One colour; float64 [H, W, 3] in 0..255, as all of these."""
    return np.broadcast_to(_colour(draw), (height, width, 3))


def gradient(draw: Draw, height: int, width: int) -> np.ndarray:
    """From one colour to another, in any direction."""
    return _blend(draw, (_along(draw, height, width) + 1) / 2)


def stripes(draw: Draw, height: int, width: int) -> np.ndarray:
    """Of two colours, two to six of them over the shorter side, in any direction."""
    periods = 1 + 2 * draw(1)[0]
    return _blend(draw, np.sin(np.pi * periods * (_along(draw, height, width) + draw(1)[0])) > 0)


def checks(draw: Draw, height: int, width: int) -> np.ndarray:
    """A board of two colours, four to eight squares on the shorter side."""
    square = min(height, width) / (4 + np.floor(5 * draw(1)[0]))
    rows, columns = (np.floor(np.arange(side) / square + draw(1)[0]) for side in (height, width))
    return _blend(draw, (rows[:, None] + columns) % 2)


def clouds(draw: Draw, height: int, width: int) -> np.ndarray:
    """Two colours mixed by smooth noise."""
    coarse = Image.fromarray(draw(36).reshape(6, 6).astype(np.float32))
    return _blend(draw, np.clip(np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)), 0, 1))


TEXTURES = (gradient, stripes, checks, clouds)


def _along(draw: Draw, height: int, width: int) -> np.ndarray:
    """[H, W] of -1..1 along a drawn direction, 2 on the shorter side."""
    angle = 2 * np.pi * draw(1)[0]
    rows, columns = (np.linspace(-1, 1, side) * side / min(height, width) for side in (height, width))
    return (rows[:, None] * np.sin(angle) + columns * np.cos(angle)) / np.sqrt(2)


def _blend(draw: Draw, share: np.ndarray) -> np.ndarray:
    """Two drawn colours, mixed by share [H, W]; the second is not far from the first."""
    first = _colour(draw)
    second = np.clip(first + 90 * (draw(3) - 0.5), 0, 255)
    return first + np.asarray(share, np.float64)[..., None] * (second - first)


def _colour(draw: Draw) -> np.ndarray:
    """A pale one, [3]."""
    hue, saturation, value = draw(3)
    return 255 * np.array(colorsys.hsv_to_rgb(hue, 0.45 * saturation, 0.65 + 0.35 * value))
