"""Features of the training images, what samples are compared with; computed once per data set, size and backbone.

They are kept in the user's cache, so that every model and every scale is measured against the same numbers.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.data.module import ShardData
from ldm.files import replace
from ldm.metrics.features import Features
from ldm.networks.downloads import cache_folder


@dataclass(frozen=True)
class Reference:
    """Features [M, D] of all training images in the fixed order of `data`, and their captions [M] if they have any."""

    features: Tensor
    captions: list[str]


def conditions(data: ShardData, num_samples: int, batch_size: int) -> Iterator[dict[str, Any]]:
    """Whole batches of `num_samples` training samples in that order, which begins anew where they are more.

    A generator samples for what its model reads of them, whatever that is.
    """
    left = num_samples
    while left > 0:
        for batch in data.statistics_loader(batch_size=batch_size, num_samples=min(left, data.num_train)):
            left -= len(batch["key"])
            yield batch


def reference(data: ShardData, backbone: Features, device: torch.device) -> Reference:
    """The reference of `data` (a ShardData) under `backbone`, from the cache if it is there."""
    path = _path(data, backbone)
    kept = load_file(path)["features"] if path.exists() else None
    features, captions = [], []
    for batch in data.statistics_loader(batch_size=100):
        captions += batch.get("caption", [])
        if kept is None:
            features.append(backbone(batch["image"].to(device)).cpu())
    if kept is None:
        kept = torch.cat(features)
        replace(path, lambda temporary: save_file({"features": kept}, temporary))
    return Reference(kept, captions)


def _path(data: ShardData, backbone: Features) -> Path:
    facts = f"{data.fingerprint}/{data.num_train}/{data.image_size}/{backbone.name}"
    return cache_folder() / "features" / f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}.safetensors"
