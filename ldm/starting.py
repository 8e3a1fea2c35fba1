"""The picture that a sample begins at, read from the files and keys of sample.py, and the size of what is drawn."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ldm.config.keys import AT_MOST, bare
from ldm.config.registry import part_of
from ldm.data.transforms import to_tensor
from ldm.drawer import Drawer
from ldm.editing import STRENGTH, Edit, on_canvas
from ldm.errors import UserError
from ldm.frames import Frame
from ldm.generate import Size
from ldm.given_files import read_picture_file
from ldm.sampling import Sampling

log = logging.getLogger(__name__)


def read_canvas(tree: Mapping[str, Any]) -> Edit | None:
    """The picture of start= with the borders of canvas= around it, the size of the images; None without a canvas.

    Raises ValueError for what is broken or means nothing without start=, OSError for a file that is not there.
    """
    if tree["start"] is None:
        for key in ("start_mask", "strength", "canvas"):
            if tree[key] is not None:
                raise UserError(f"{key}: says what is done with start=FILE; give that too, or leave {key} out")
    if tree["canvas"] is None:
        return None
    for key in ("image_size", "height", "width"):
        if tree[key] is not None:
            raise UserError(f"{key}: the size is that of start= with the borders of canvas=; leave one of the two out")
    borders = tree["canvas"]
    borders = [borders] * 4 if isinstance(borders, int) else borders
    if max(borders, default=0) > AT_MOST["image_size"]:
        raise UserError(f"canvas={borders}: at most {AT_MOST['image_size']} px a side")
    picture = _read_image("start", tree["start"])
    return _edit(tree, *on_canvas(picture, _hole(tree, _sides(picture)), borders))


def check_canvas(edit: Edit, drawer: Drawer, sampling: Sampling) -> None:
    """Raises ValueError for a canvas that a model has conditions beside, or that is not of a size that it draws."""
    if drawer.beside_latent & set().union(*drawer.conditions(sampling).values()):
        raise UserError(
            "canvas: a condition of this model stands beside the latent, in its size alone; one trained to fill "
            "holes takes image= and mask="
        )
    (height, width), least = edit.size, drawer.drawable(edit.size, sampling)
    if least != edit.size:
        raise UserError(
            f"canvas: makes {width} x {height} px, and this model draws {least[1]} x {least[0]}; "
            f"{least[1] - width} px more across and {least[0] - height} down would fit"
        )


def read_start(tree: Mapping[str, Any], frame: Frame) -> Edit | None:
    """The picture of start=, as large as the images are asked for in `frame`; None to start from noise.

    Raises ValueError for pictures of another size and for what is broken, OSError for a file that is not there.
    """
    if tree["start"] is None:
        return None
    picture = _read_image("start", tree["start"])
    _check_size(tree, "start", picture, frame.size)
    hole = _hole(tree, frame.size)
    return _edit(tree, frame.filled(picture, 1), None if hole is None else frame.filled(hole, 1))


def _edit(tree: Mapping[str, Any], picture: Tensor, hole: Tensor | None) -> Edit:
    strength = tree["strength"]
    if strength is None:
        strength = STRENGTH if hole is None else 1.0
    return Edit(picture, strength, hole)


def _hole(tree: Mapping[str, Any], size: tuple[int, int]) -> Tensor | None:
    """Where start_mask= is white, bool [1, 1, H, W] of `size`."""
    if tree["start_mask"] is None:
        return None
    mask = _read_image("start_mask", tree["start_mask"])
    _check_size(tree, "start_mask", mask, size)
    return mask.mean(1, keepdim=True) > 0


def _read_image(key: str, path: str) -> Tensor:
    """An image file under `key` as it is, [1, 3, H, W] in [-1, 1]. Raises ValueError if it is broken."""
    return to_tensor([read_picture_file(key, path)])


def tiled_for(size: Size, tree: Mapping[str, Any], words: Sequence[str], drawer: Drawer) -> Mapping[str, Any]:
    """`tree` with windows to denoise in, where its canvas= makes images of `size` larger than those of the training.

    `words` are those of the command line: where they choose of tiling, it is as they say.
    """
    height, width = (size, size) if isinstance(size, int) else size
    side = drawer.image_size
    if tree["canvas"] is None or max(height, width) <= side or "tiling" in map(bare, words):
        return tree
    said = "canvas: %d x %d px are more than the %d of the training; denoised as tiling=blended"
    log.warning(said, width, height, side)
    [tiling] = part_of("tiling", "blended")
    return {**tree, "tiling": tiling}


def _sides(picture: Tensor) -> tuple[int, int]:
    return picture.shape[-2], picture.shape[-1]


def _check_size(tree: Mapping[str, Any], key: str, picture: Tensor, size: tuple[int, int]) -> None:
    height, width = _sides(picture)
    if (height, width) == size:
        return
    has = f"{key}={tree[key]}: has {width} x {height} px, and"
    if tree["canvas"] is not None:
        raise UserError(f"{has} start= has {size[1]} x {size[0]}; the two have one size, canvas= goes around both")
    raise UserError(f"{has} the images will have {size[1]} x {size[0]}; resize it, or say height= and width=")
