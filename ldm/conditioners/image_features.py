"""EfficientNet-lite0's features of a picture as its embedding: a stand-in for CLIP's where no CLIP is at hand.

Their weights install from a package. They know ImageNet's classes and no text, and are said to be a stand-in wherever a
figure was made with them.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.conditioners.base import field
from ldm.conditioners.clip_image import ClipImage, PictureEncoder
from ldm.conditioners.frozen import Batch
from ldm.networks.bounded import uncounted
from ldm.networks.efficientnet import EfficientNetLite0, pretrained_efficientnet
from ldm.networks.fingerprint import fingerprint
from ldm.networks.layers import Frozen

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pixels in [0, 1] that it was trained on
WIDTH = 1280


class FeatureEncoder(PictureEncoder):
    """Pooled last features, 1280 wide, of pictures resized to `size` px; each embedding of mean 0 and variance 1."""

    name = "image_features"

    def __init__(self, network: EfficientNetLite0, size: int, key: str = "style"):
        self.key = key
        self.width = WIDTH
        self.size = size
        self.model = Frozen(network)

    def identity(self) -> dict[str, Any]:
        """The network's, the size it sees and, but for a style, the field that it is of."""
        of = {} if self.key == "style" else {"of": self.key}
        return {"model": "EfficientNetLite0", "weights": fingerprint(self.model.module), "size": self.size, **of}

    @torch.no_grad()
    def encode(self, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        """The embedding [B, 1280] in fp32 of batch[`key`] [B, 3, H, W] in [-1, 1]."""
        pictures = field(batch, self.key, self.name).to(device).float()
        mean, std = (torch.tensor(own).view(3, 1, 1).to(device, non_blocking=True) for own in (MEAN, STD))
        with torch.autocast(device.type, enabled=False):
            seen = F.interpolate(pictures, (self.size, self.size), mode="bicubic", antialias=True).clamp(-1, 1)
            features = self.model.on(device).features(((seen + 1) / 2 - mean) / std)
            return {"embedding": F.layer_norm(features, (WIDTH,))}


def image_features(
    path: str | None = None,
    size: int = 128,
    slots: Sequence[Literal["vector", "tokens"]] = ("vector",),
    width: int | None = None,
    drop_prob: float = 0.9,
) -> ClipImage:
    """Conditioning on a picture as by CLIP's embedding of it (ClipImage), by weights at `path` or of the cache."""
    return ClipImage(_load(None if path is None else Path(path).expanduser(), size), slots, width, drop_prob)


def of_image(path: str | None = None, size: int = 128) -> PictureEncoder:
    """The encoder of batch["image"], of what is modelled itself, by weights at `path` or of the cache."""
    return _load(None if path is None else Path(path).expanduser(), size, "image")


@cache
def _load(path: Path | None, size: int, key: str = "style") -> FeatureEncoder:
    """One frozen encoder per process, however many models use it."""
    with uncounted(), torch.device("cpu"):  # also while a model is counted on the meta device
        return FeatureEncoder(pretrained_efficientnet(path), size, key)
