"""Features of the training images, what samples are compared with; computed once per data set, size and backbone.

They are kept in the user's cache, so that every model and every scale is measured against the same numbers.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.data.module import ShardData
from ldm.files import replace
from ldm.measuring import conditions as conditions  # where it was
from ldm.measuring import in_order
from ldm.metrics.features import Features
from ldm.networks.downloads import cache_folder
from ldm.training.distributed import broadcast, collect, together


@dataclass(frozen=True)
class Reference:
    """Features [M, D] of all training images in the fixed order of `data`, and their captions [M] if they have any."""

    features: Tensor
    captions: list[str]


def reference(
    data: ShardData, backbone: Features, device: torch.device, rank: int = 0, world_size: int = 1
) -> Reference:
    """The reference of `data` (a ShardData) under `backbone`, from the cache if it is there.

    Ranks, which call this together, look at a share of the images each; only 0 has it whole, and writes the cache.
    """
    path = _path(data, backbone)
    kept = load_file(path)["features"] if rank == 0 and path.exists() else None
    known = broadcast(kept is not None)
    features, captions = [torch.empty(0, backbone.dim)], []
    with together():
        for batch in data.statistics_loader(rank, world_size, batch_size=100):
            captions += batch.get("caption", [])
            if not known:
                features.append(backbone(batch["image"].to(device)).cpu())
    said = [pair for own in collect(_numbered(captions, rank, world_size)) for pair in own]
    if not known:
        found = torch.cat(features)
        kept = in_order(found, torch.arange(len(found)) * world_size + rank)
        if rank == 0:
            replace(path, lambda temporary: save_file({"features": kept}, temporary))
    return Reference(features[0] if kept is None else kept, [caption for _, caption in sorted(said)])


def _numbered(captions: list[str], rank: int, world_size: int) -> list[tuple[int, str]]:
    return [(rank + world_size * place, caption) for place, caption in enumerate(captions)]


def _path(data: ShardData, backbone: Features) -> Path:
    facts = f"{data.fingerprint}/{data.num_train}/{data.image_size}/{backbone.name}"
    return cache_folder() / "features" / f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}.safetensors"
