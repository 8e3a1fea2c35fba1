"""Held-out losses of several models inside one interval of noise, from the same draws, and the losses' differences.

Pictures of one caption are not independent: differences are averaged over them first, and captions are the units.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ldm.build import Parts
from ldm.diffusion.cond import Condition
from ldm.diffusion.counter_random import normal
from ldm.diffusion.loss import stratified_losses
from ldm.diffusion.noise import NoiseDistribution
from ldm.drawer import Drawer
from ldm.model import Model

NUM_LEVELS = 16


@dataclass(frozen=True)
class HeldOut:
    """Latents x0 [N, ...] of held-out images, their numbers [N], captions and batch, made once for all models.

    Images without captions are units of their own, and have their numbers in the place of captions.
    Of `parts` are the weighting, the loss and the precision by which all are measured.
    """

    x0: Tensor
    index: Tensor
    captions: list[str]
    batch: dict[str, Any]
    parts: Parts

    def to(self, device: torch.device) -> "HeldOut":
        """The same on a device."""
        batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in self.batch.items()}
        return replace(self, x0=self.x0.to(device), index=self.index.to(device), batch=batch)


@torch.no_grad()
def held_out(model: Model, data: Any, seed: int, num_samples: int) -> HeldOut:
    """The first `num_samples` held-out images of `data` through the first stage of `model`, measured by its loss."""
    [batch] = data.validation_loader(batch_size=num_samples, num_samples=num_samples)
    moments = model.first_stage.moments(batch["image"])
    shape = model.first_stage.spec.shape(moments.shape[2:])
    x0 = model.first_stage.sample(moments, normal(seed, "validation posterior", batch["index"], shape))
    captions = batch.get("caption") or [str(number) for number in batch["index"].tolist()]
    return HeldOut(x0, batch["index"], captions, batch, model.parts)


@torch.no_grad()
def interval_loss(
    drawer: Drawer, seen: HeldOut, noise: NoiseDistribution, seed: int, num_levels: int = NUM_LEVELS
) -> Tensor:
    """Losses [N] of `drawer` on what it has not seen, at stratified levels of `noise`; the draws are the same for all.

    All its conditions are given, and nothing guides.
    """
    denoise = drawer.guided(drawer.sampling({"guidance": {"scale": 1.0}}), seen.batch, len(seen.x0))
    weighting, loss = seen.parts["weighting"], seen.parts["loss"]
    low = "bf16" in str(seen.parts.tree["trainer"]["precision"])

    def denoiser(x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        return denoise(x, sigma)

    with torch.autocast(seen.x0.device.type, torch.bfloat16, enabled=low):
        return stratified_losses(denoiser, seen.x0, {}, noise, weighting, seed, seen.index, num_levels, loss)


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
    of, over = of.cpu(), over.cpu()
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
