"""Masks of tokens and their biases, how much more each place of the latent looks at each (`layers.attention`), as
conditions merge.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.networks.context import mask_at


def bias_of(name: str, tokens: Tensor, drop: Tensor, *biases: Tensor | None) -> Tensor | None:
    """The sum of what there is for the tokens [B, N, D] of a condition, [B, N, h, w], zero where it is dropped."""
    found = [bias.to(tokens.device).float() for bias in biases if bias is not None]
    for bias in found:
        if bias.ndim != 4 or bias.shape[:2] != tokens.shape[:2]:
            raise UserError(
                f"tokens_bias of {name}: of {list(bias.shape)}, must be [{len(tokens)}, {tokens.shape[1]}, h, w], for "
                "each sample and each of its tokens"
            )
    return torch.stack(found).sum(0).masked_fill(drop.view(-1, 1, 1, 1), 0.0) if found else None


def filled(biases: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
    """With zeros for the tokens that have no bias."""
    like = next(bias for _, bias in biases if bias is not None)
    return [like.new_zeros(*tokens.shape[:2], *like.shape[2:]) if bias is None else bias for tokens, bias in biases]


def joined_masks(masks: Sequence[Tensor]) -> Tensor:
    """Masks [B, N] or, of the places that see a token, [B, N, h, w], as one along N: on the finest grid, if any is."""
    grids = [mask.shape[-2:] for mask in masks if mask.ndim == 4]
    if not grids:
        return torch.cat(list(masks), dim=1)
    size = [max(sides) for sides in zip(*grids, strict=True)]
    return torch.cat([_by_place(mask, size) for mask in masks], dim=1)


def _by_place(mask: Tensor, size: Sequence[int]) -> Tensor:
    if mask.ndim == 2:
        return mask[..., None, None].expand(-1, -1, *size)
    return mask_at(mask, size)
