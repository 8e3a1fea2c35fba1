"""Features of the training images, what samples are compared with; computed once per data set, size and backbone.

They are kept in the user's cache, so that every model and every scale is measured against the same numbers.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.files import replace
from ldm.metrics.features import Features
from ldm.networks.pretrained import cache_folder


@dataclass(frozen=True)
class Reference:
    """Features [M, D] of all training images in `data`'s fixed random order, their captions [M], labels [M] if any."""

    features: Tensor
    captions: list[str]
    labels: Tensor | None = None

    def conditions(self, start: int, stop: int) -> dict[str, Any]:
        """Captions, and labels if any, of the images from `start` to `stop`, as if they were repeated for ever."""
        places = [place % len(self.captions) for place in range(start, stop)]
        found: dict[str, Any] = {"caption": [self.captions[place] for place in places]}
        return found if self.labels is None else {**found, "label": self.labels[places]}


def reference(data: Any, backbone: Features, device: torch.device) -> Reference:
    """The reference of `data` (a ShardData) under `backbone`, from the cache if it is there."""
    path = _path(data, backbone)
    kept = load_file(path)["features"] if path.exists() else None
    features, captions, labels = [], [], []
    for batch in data.statistics_loader(batch_size=100):
        captions += batch["caption"]
        labels += [batch["label"]] if "label" in batch else []
        if kept is None:
            features.append(backbone(batch["image"].to(device)).cpu())
    if kept is None:
        kept = torch.cat(features)
        replace(path, lambda temporary: save_file({"features": kept}, temporary))
    return Reference(kept, captions, torch.cat(labels) if labels else None)


def _path(data: Any, backbone: Features) -> Path:
    facts = f"{data.fingerprint}/{data.num_train}/{data.image_size}/{backbone.name}"
    return cache_folder() / "features" / f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}.safetensors"
