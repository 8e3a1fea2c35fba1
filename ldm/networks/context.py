"""What cross-attention sees of the conditions: made once by a network, and passed on unchanged by its blocks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ldm.networks.bias import Bias


def mask_at(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Which positions of a map of `size` see which token, of a mask [B, M, h, w] on another grid over it."""
    if mask.shape[-2:] == tuple(size):
        return mask
    return F.adaptive_max_pool2d(mask.float(), tuple(size)) > 0


class Context(NamedTuple):
    """Tokens to attend to, with their mask and bias.

    tokens [B, M, D]; mask [B, M], True = real, None: all are, or [B, M, h, w], which positions see a token, on a grid
    of any size over the map; bias [B, M, h, w] or None: how much more each position of the map shall look at each
    token, in units of the largest q.k of the sample in the layer, or as a `Bias` says.
    """

    tokens: Tensor
    mask: Tensor | None = None
    bias: Tensor | Bias | None = None

    def at(self, size: Sequence[int]) -> "Context":
        """The same for a layer whose map is of `size` [height, width]: its bias resized, bilinearly.

        Where it shrinks each position takes the mean of what it covers, so that no small region falls between two. A
        position sees the tokens that any part of it sees.
        """
        if self.mask is not None and self.mask.ndim == 4:
            return self._replace(mask=mask_at(self.mask, size))._bias_at(size)
        return self._bias_at(size)

    def _bias_at(self, size: Sequence[int]) -> "Context":
        if self.bias is None:
            return self
        values, unit = Bias.of(self.bias)
        if values.shape[-2:] == tuple(size):
            return self
        resized = F.interpolate(values.float(), tuple(size), mode="bilinear", antialias=True)
        return self._replace(bias=Bias(resized, unit))

    @property
    def visible(self) -> Tensor | None:
        """The mask for each head and query, [B, 1, 1, M] or, of positions, [B, 1, h w, M]."""
        if self.mask is None:
            return None
        return self.mask[:, None, None] if self.mask.ndim == 2 else self.mask.flatten(2).transpose(1, 2)[:, None]

    @property
    def by_position(self) -> Bias | None:
        """The bias for each head, its values [B, 1, h w, M]."""
        if self.bias is None:
            return None
        values, unit = Bias.of(self.bias)
        return Bias(values.flatten(2).transpose(1, 2)[:, None], unit)
