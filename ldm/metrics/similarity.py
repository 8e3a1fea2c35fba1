"""How alike two pictures look: the cosine of embeddings of them, each with its backbone's name.

For a style that a sample was given: a backbone that the model does not see its style by says more than the model's own.
"""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.metrics.clip_score import ClipScore, open_clip_score
from ldm.networks.lpips import LPIPS, pretrained_lpips


class Similarity(nn.Module, ABC):
    """Frozen embeddings of pictures; `name` goes beside every number."""

    name: str

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Unit vectors [B, D] of images [B, 3, H, W] in [-1, 1]; two of them have their cosine for their similarity."""


class StyleStatistics(Similarity):
    """Means and standard deviations of the channels of LPIPS' VGG16 at its five depths, seen at `size` px.

    They are the style of AdaIN (Huang and Belongie, arXiv 1703.06868), and say nothing of where things are. Each depth
    counts the same.
    """

    def __init__(self, lpips: LPIPS, size: int):
        super().__init__()
        self.lpips, self.size = lpips.eval(), size
        self.name = f"vgg16_statistics@{size}"

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            seen = F.interpolate(images.float(), (self.size, self.size), mode="bicubic", antialias=True).clamp(-1, 1)
            found = [torch.cat([m.mean((2, 3)), m.std((2, 3))], dim=1) for m in self.lpips.maps(seen)]
        return torch.cat([F.normalize(each, dim=1) for each in found], dim=1) / len(found) ** 0.5


class ClipSimilarity(Similarity):
    """The embeddings of an open_clip model."""

    def __init__(self, score: ClipScore):
        super().__init__()
        self.score = score
        self.name = score.name

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.score.embed_images(images)


def style_statistics(size: int = 64, path: str | Path | None = None) -> StyleStatistics:
    """By VGG16's published weights, from `path` (LPIPS' safetensors) or the cache."""
    return StyleStatistics(pretrained_lpips("vgg", path), size)


def clip_similarity(model: str, weights: str) -> ClipSimilarity:
    """By one of open_clip's own architectures; `weights` is a local file, or a tag that open_clip downloads."""
    return ClipSimilarity(open_clip_score(model, weights))
