"""The validation loss inside one interval of noise, from fixed draws, so that parent and expert are comparable."""

from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.draws import normal
from ldm.diffusion.loss import stratified_losses
from ldm.diffusion.noise import NoiseDistribution
from ldm.model import Model


@torch.no_grad()
def interval_loss(model: Model, data: Any, noise: NoiseDistribution, seed: int, num_levels: int = 16) -> Tensor:
    """Losses [N] of the held-out samples at `num_levels` stratified levels of `noise` each, all conditions given."""
    weighting, loss = model.parts["weighting"], model.parts["loss"]
    losses = []
    for batch in data.validation_loader(batch_size=64):
        index = batch["index"]
        moments = model.first_stage.moments(batch["image"])
        shape = (model.first_stage.spec.channels, *moments.shape[2:])
        x0 = model.first_stage.sample(moments, normal(seed, "validation posterior", index, shape))
        cond = model.conditioner(batch, drop=model.conditioner.drop_none(len(index)))
        losses.append(stratified_losses(model.denoiser, x0, cond, noise, weighting, seed, index, num_levels, loss))
    return torch.cat(losses)
