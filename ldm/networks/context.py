"""What cross-attention sees of the conditions: made once by a network, and passed on unchanged by its blocks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ldm.networks.bias import Bias


class Context(NamedTuple):
    """Tokens to attend to, with their mask and bias.

    tokens [B, M, D]; mask [B, M], True = real, None: all are; bias [B, M, h, w] or None: how much more each position of
    the map shall look at each token, in units of the largest q.k of the sample in the layer, or as a `Bias` says.
    """

    tokens: Tensor
    mask: Tensor | None = None
    bias: Tensor | Bias | None = None

    def at(self, size: Sequence[int]) -> "Context":
        """The same for a layer whose map is of `size` [height, width]: its bias resized, bilinearly.

        Where it shrinks each position takes the mean of what it covers, so that no small region falls between two.
        """
        if self.bias is None:
            return self
        values, unit = Bias.of(self.bias)
        if values.shape[-2:] == tuple(size):
            return self
        resized = F.interpolate(values.float(), tuple(size), mode="bilinear", antialias=True)
        return self._replace(bias=Bias(resized, unit))

    @property
    def visible(self) -> Tensor | None:
        """The mask for each head and query, [B, 1, 1, M]."""
        return None if self.mask is None else self.mask[:, None, None]

    @property
    def by_position(self) -> Bias | None:
        """The bias for each head, its values [B, 1, h w, M]."""
        if self.bias is None:
            return None
        values, unit = Bias.of(self.bias)
        return Bias(values.flatten(2).transpose(1, 2)[:, None], unit)
