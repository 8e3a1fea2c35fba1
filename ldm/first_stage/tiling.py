"""Maps too large for one pass: overlapping tiles, one at a time, blended where they overlap."""

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from ldm.errors import UserError


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """First positions of tiles of `tile` that cover `length`, neighbours sharing at least `overlap`; one if it fits."""
    if length <= tile:
        return [0]
    step = tile - overlap
    return [*range(0, length - tile, step), length - tile]


def _ramp(size: int, overlap: int, first: bool, last: bool) -> Tensor:
    """Weights [size] of a tile along one side: 1 inside, falling linearly over the overlap with each neighbour."""
    weights = torch.ones(size)
    rise = (torch.arange(overlap) + 0.5) / overlap
    if not first:
        weights[:overlap] = rise
    if not last:
        weights[size - overlap :] = torch.minimum(weights[size - overlap :], rise.flip(0))
    return weights


def tiled(function: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, scale: Fraction) -> Tensor:
    """`function` of x [B, C, H, W], which makes sides `scale` times as long, from tiles of at most `tile` a side.

    `tile` and `overlap` are in x's pixels; where tiles overlap their answers are averaged with linear weights. Only
    one tile is in work at a time, so that the memory in use does not grow with x. Raises ValueError unless 0 <
    overlap <= tile / 2 and both, scaled, are whole.
    """
    if not 0 < overlap <= tile // 2:
        raise UserError(f"tile={tile}, overlap={overlap}: the overlap must be above 0 and at most half the tile")
    if any((value * scale).denominator != 1 for value in (tile, overlap)):
        raise UserError(f"tile={tile}, overlap={overlap}: both must be multiples of {scale.denominator}")
    height, width = x.shape[-2:]
    rows, columns = starts(height, tile, overlap), starts(width, tile, overlap)
    if len(rows) == len(columns) == 1:
        return function(x)
    total = weight = None
    blend = int(overlap * scale)
    for top in rows:
        for left in columns:
            part = function(x[..., top : top + tile, left : left + tile])
            h, w = part.shape[-2:]
            if total is None:
                total = part.new_zeros(*part.shape[:2], int(height * scale), int(width * scale))
                weight = part.new_zeros(total.shape[-2:])
            down = _ramp(h, blend, top == rows[0], top == rows[-1])
            across = _ramp(w, blend, left == columns[0], left == columns[-1])
            mask = torch.outer(down, across).to(part)
            y, z = int(top * scale), int(left * scale)
            total[..., y : y + h, z : z + w] += part * mask
            weight[y : y + h, z : z + w] += mask
    return total / weight
