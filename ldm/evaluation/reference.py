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
from ldm.training.distributed import broadcast, collect, together


@dataclass(frozen=True)
class Reference:
    """Features [M, D] of all training images in the fixed order of `data`, and their captions [M] if they have any."""

    features: Tensor
    captions: list[str]


def conditions(
    data: ShardData, num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Whole batches of training samples in that order, repeated from the start if there are fewer than `num_samples`.

    With the numbers, int64 [B], of what is to be sampled for them: of 0 to `num_samples` each `world_size`-th from
    `rank` on. A generator samples for what its model reads of them, whatever that is.
    """
    numbers, begun = torch.arange(num_samples)[rank::world_size], 0
    while len(numbers):
        first = (rank - begun) % world_size  # of this rank in this round of the order
        last = min(data.num_train, first + (len(numbers) - 1) * world_size + 1)
        if first < last:
            for batch in data.statistics_loader(first, world_size, batch_size, last):
                yield batch, numbers[: len(batch["key"])]
                numbers = numbers[len(batch["key"]) :]
        begun += data.num_train


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


def in_order(rows: Tensor, numbers: Tensor) -> Tensor:
    """The rows [N, ...] of all ranks, on the CPU, in the order of their `numbers` [N], on rank 0; elsewhere its own."""
    found = collect((rows, numbers))
    if not found:
        return rows
    every, order = (torch.cat(parts) for parts in zip(*found, strict=True))
    return every[order.argsort()]


def _numbered(captions: list[str], rank: int, world_size: int) -> list[tuple[int, str]]:
    return [(rank + world_size * place, caption) for place, caption in enumerate(captions)]


def _path(data: ShardData, backbone: Features) -> Path:
    facts = f"{data.fingerprint}/{data.num_train}/{data.image_size}/{backbone.name}"
    return cache_folder() / "features" / f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}.safetensors"
