"""The conditions of a batch as keywords of the network, cut and picked together with the x they belong to.

Code that denoises in windows or routes samples to ensemble members handles conditions only by these functions.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.errors import UserError

Condition = dict[str, Tensor]  # {keyword: [B, ...]}
Area = tuple[slice, slice]  # rows and columns of the latent

MAPS = (
    "concat",
    "tokens_bias",
)  # [B, K, h, w]: they lie on the latent, position by position; all else holds everywhere


def cut(x: Tensor, areas: Sequence[Area]) -> Tensor:
    """x [B, C, H, W] -> its windows [len(areas) B, C, h, w], all samples of the first one first."""
    return torch.cat([x[..., rows, columns] for rows, columns in areas])


def cut_cond(cond: Condition, areas: Sequence[Area]) -> Condition:
    """The conditions of `cut(x, areas)`: maps are cut likewise, all others are repeated for every window."""
    return {
        name: cut(value, areas) if _is_map(name, value) else value.repeat(len(areas), *[1] * (value.ndim - 1))
        for name, value in cond.items()
    }


def on_latent(cond: Condition, x: Tensor) -> Condition:
    """The same with masks of the places that see a token, [B, M, h, w] on a grid of their own, on that of x."""
    mask = cond.get("tokens_mask")
    if mask is None or mask.ndim == 2:
        return cond
    return {**cond, "tokens_mask": F.adaptive_max_pool2d(mask.float(), x.shape[-2:]) > 0}


def _is_map(name: str, value: Tensor) -> bool:
    return name in MAPS or (name == "tokens_mask" and value.ndim == 4)


def check_maps(cond: Condition, x: Tensor) -> None:
    """Raises ValueError naming a map among the conditions that does not lie on x [B, C, H, W]."""
    for name in MAPS:
        if name in cond and cond[name].shape[-2:] != x.shape[-2:]:
            given, needed = (tuple(value.shape[-2:]) for value in (cond[name], x))
            raise UserError(f"{name} condition of {given}: must have the latent's height and width, {needed}")
