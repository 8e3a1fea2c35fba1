"""Held-out losses of several models inside one interval of noise, from the same draws, and what their difference is.

Pictures of one caption are not independent: differences are averaged over them first, and captions are the units.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.counter_random import normal
from ldm.diffusion.loss import stratified_losses
from ldm.diffusion.noise import NoiseDistribution
from ldm.model import Model

NUM_LEVELS = 16


@dataclass(frozen=True)
class HeldOut:
    """Latents x0 [N, ...] of held-out images, their numbers [N], captions and conditions, made once for all models."""

    x0: Tensor
    index: Tensor
    captions: list[str]
    cond: dict[str, Tensor]


@torch.no_grad()
def held_out(model: Model, data: Any, seed: int, num_samples: int) -> HeldOut:
    """The first `num_samples` held-out images of `data` through the first stage and conditioner of `model`."""
    [batch] = data.validation_loader(batch_size=num_samples, num_samples=num_samples)
    moments = model.first_stage.moments(batch["image"])
    shape = model.first_stage.spec.shape(moments.shape[2:])
    x0 = model.first_stage.sample(moments, normal(seed, "validation posterior", batch["index"], shape))
    cond = model.conditioner(batch, drop=model.conditioner.drop_none(len(x0)))
    return HeldOut(x0, batch["index"], batch["caption"], cond)


@torch.no_grad()
def interval_loss(model: Model, seen: HeldOut, noise: NoiseDistribution, seed: int) -> Tensor:
    """Losses [N] of `model` on what it has not seen, at stratified levels of `noise`; the draws are the same for all.

    The network computes in the precision it was trained in.
    """
    weighting, loss = model.parts["weighting"], model.parts["loss"]
    low = "bf16" in str(model.parts.tree["trainer"]["precision"])
    with torch.autocast(seen.x0.device.type, torch.bfloat16, enabled=low):
        return stratified_losses(
            model.denoiser, seen.x0, seen.cond, noise, weighting, seed, seen.index, NUM_LEVELS, loss
        )


def by_caption(values: Tensor, captions: Sequence[str]) -> Tensor:
    """Means [C] of values [N] over the images of each caption."""
    place = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    group = torch.tensor([place[caption] for caption in captions])
    sums = torch.zeros(len(place), dtype=torch.float64).index_add_(0, group, values.double())
    return sums / group.bincount(minlength=len(place))


def gain(of: Tensor, over: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """How much smaller losses `of` [N] are than `over` [N], paired: mean over captions, and half the 95 % interval.

    The interval is normal, 1.96 sd / sqrt(n), and infinite for fewer than two captions.
    """
    differences = by_caption(over - of, captions)
    count = len(differences)
    half = 1.96 * differences.std().item() / math.sqrt(count) if count > 1 else math.inf
    return {
        "loss": by_caption(of, captions).mean().item(),
        "over": by_caption(over, captions).mean().item(),
        "gain": differences.mean().item(),
        "half_interval": half,
        "captions": count,
    }
