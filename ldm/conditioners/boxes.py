"""Objects in boxes as tokens that only the places inside of their boxes see."""

import math

import torch
from torch import Tensor, nn

from ldm.conditioners.base import Batch
from ldm.conditioners.layout_numbers import LayoutReader

OCTAVES = 6  # of the sines and cosines of a box's sides
GRID = 64  # cells a side of who sees what, over the crop: a multiple of most maps


class Boxes(LayoutReader):
    """batch["layout"] [B, 3 max_objects + 2] (data.fields.Layout) -> tokens [B, 1 + max_objects, width] and who sees
    them, "tokens_mask" [B, 1 + max_objects, 64, 64].

    The first token is the ground, seen from everywhere; each other is an object's class and box by two layers, as
    GLIGEN tells them (arXiv 2301.07093, equation 5), seen from the places that its box touches, as InstanceDiffusion
    masks its attention (arXiv 2402.03290, section 3.2). So where things go need not be found out, as it has to be from
    the published numbers of corners (`LayoutTransformer`). Boxes are those in the crop. The null has no object.
    """

    name = "boxes"
    size = "max_objects"

    def __init__(self, width: int, vocabulary: int = 8192, max_objects: int = 30, drop_prob: float = 0.0):
        super().__init__({"tokens": width}, drop_prob, 1 + max_objects, 3 * max_objects + 2, vocabulary)
        self.side = math.isqrt(vocabulary)
        self.ground = nn.Parameter(torch.randn(width))
        self.classes = nn.Embedding(vocabulary, width)
        self.layers = nn.Sequential(nn.Linear(width + 8 * OCTAVES, width), nn.SiLU(), nn.Linear(width, width))
        octaves = math.pi * 2.0 ** torch.arange(OCTAVES)
        self.register_buffer("octaves", octaves, persistent=False)

    def sized(self, count: int) -> int:
        return (count - 2) // 3

    def forward(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        numbers = self.numbers_of(batch, drop)
        objects = numbers[:, :-2].unflatten(1, (-1, 3))
        classes, boxes = objects[..., 0], self._in_crop(objects[..., 1:], numbers[:, -2:])
        angles = boxes[..., None] * self.octaves  # [B, K, 4, octaves]
        place = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(2)
        tokens = self.layers(torch.cat([self.classes(classes), place.to(self.ground.dtype)], dim=-1))
        seen = self._touched(boxes) & (classes != self.none)[..., None, None]
        return {
            "tokens": torch.cat([self.ground.expand(len(drop), 1, -1), tokens], dim=1),
            "tokens_mask": torch.cat([torch.ones_like(seen[:, :1]), seen], dim=1),
        }

    def _in_crop(self, corners: Tensor, crop: Tensor) -> Tensor:
        """Left, top, right, bottom [B, K, 4] in shares of the crop, of corners [B, K, 2] in an image, and its own."""
        points = self._points(torch.cat([corners, crop[:, None]], dim=1))  # [B, K + 1, 2, 2]
        first, last = points[:, -1:, :1], points[:, -1:, 1:]
        inside = (points[:, :-1] - first) / (last - first).clamp(min=1 / self.side)
        return inside.clamp(0, 1).flatten(2)

    def _points(self, numbers: Tensor) -> Tensor:
        """Column and row [..., 2] in shares of the sides, of numbers of places [...]."""
        rows = numbers.div(self.side, rounding_mode="floor").clamp(max=self.side - 1)
        return torch.stack([numbers % self.side, rows], dim=-1) / (self.side - 1)

    def _touched(self, boxes: Tensor) -> Tensor:
        """The cells [B, K, GRID, GRID] that boxes [B, K, 4] touch, at least one each."""
        low = torch.arange(GRID, device=boxes.device) / GRID
        least = boxes[..., :2].clamp(max=1 - 1 / GRID)
        most = torch.maximum(boxes[..., 2:], least + 1 / GRID)
        inside = (least[..., None] < low + 1 / GRID) & (most[..., None] > low)  # [B, K, 2, GRID]
        return inside[..., 1, :, None] & inside[..., 0, None, :]
