"""What cross-attention sees of the conditions: made once by a network, and passed on unchanged by its blocks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Context(NamedTuple):
    """Tokens to attend to, with their mask and bias.

    tokens [B, M, D]; mask [B, M], True = real, None: all are; bias [B, M, h, w] or None: how much more each position of
    the map shall look at each token, in units of the largest q.k of the sample in the layer (`layers.attention`).
    """

    tokens: Tensor
    mask: Tensor | None = None
    bias: Tensor | None = None

    def at(self, size: Sequence[int]) -> "Context":
        """The same for a layer whose map is of `size` [height, width]: its bias resized, bilinearly.

        Where it shrinks each position takes the mean of what it covers, so that no small region falls between two.
        """
        if self.bias is None or self.bias.shape[-2:] == tuple(size):
            return self
        return self._replace(bias=F.interpolate(self.bias.float(), tuple(size), mode="bilinear", antialias=True))

    @property
    def visible(self) -> Tensor | None:
        """The mask for each head and query, [B, 1, 1, M]."""
        return None if self.mask is None else self.mask[:, None, None]

    @property
    def by_position(self) -> Tensor | None:
        """The bias for each head, [B, 1, h w, M]."""
        return None if self.bias is None else self.bias.flatten(2).transpose(1, 2)[:, None]
