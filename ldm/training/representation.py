"""Representation alignment (REPA, arXiv 2410.06940): a layer of the network learns what an encoder sees of the image.

Here both are pooled over their places, as what is cached of the encoder is. Only training needs it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.conditioners.clip_image import PictureEncoder
from ldm.errors import UserError


class Representation:
    """What is aligned with: a frozen `encoder` of the clean image, and by how much, `weight` (equation 8's lambda).

    `hidden` is the width of the projection, a network of three layers as published.
    """

    def __init__(self, encoder: PictureEncoder, weight: float = 0.5, hidden: int = 512):
        if not weight > 0:
            raise UserError(f"representation.weight={weight}: must be above 0; representation=null leaves it out")
        if hidden < 1:
            raise UserError(f"representation.hidden={hidden}: must be at least 1")
        self.encoder = encoder
        self.weight = weight
        self.hidden = hidden

    def head(self, network: nn.Module) -> "AlignedHead":
        """The projection from the layer that a network names. Raises UserError for one that names none."""
        place = getattr(network, "aligned_layer", None)
        if place is None:
            raise UserError(f"representation: {type(network).__name__} names no layer to align (aligned_layer)")
        return AlignedHead(self, network, *place)


class AlignedHead(nn.Module):
    """The projection of the layer called `layer`, `width` wide, of a network in training; it keeps that layer's output.

    It is no part of the network, which neither holds it nor is held by it.
    """

    def __init__(self, representation: Representation, network: nn.Module, layer: str, width: int):
        super().__init__()
        self.representation = representation
        hidden = representation.hidden
        self.project = nn.Sequential(
            nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, representation.encoder.width),
        )  # fmt: skip
        self._seen: Tensor | None = None
        network.get_submodule(layer).register_forward_hook(self._see)

    def _see(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if module.training and torch.is_grad_enabled():  # not where only a target is estimated (objective=consistency)
            self._seen = output

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """1 - cos [B] between the projection of what the layer gave last, and the encoding of the batch's images."""
        seen, self._seen = self._seen, None
        pooled = seen.flatten(2).mean(2) if seen.ndim == 4 else seen.mean(1)  # [B, C, h, w], or tokens [B, N, C]
        encoder = self.representation.encoder
        known = encoder.known(batch)
        given = encoder.encode(batch, pooled.device) if known is None else known
        target = given["embedding"].to(pooled.device).float()
        return 1 - F.cosine_similarity(self.project(pooled).float(), target, dim=1)
