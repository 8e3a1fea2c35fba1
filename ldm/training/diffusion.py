"""Stage two and experts: a denoiser on the latents of a frozen first stage, for all noise or an expert's part of it."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from data.module import ShardData
from ldm.conditioners.base import Conditioners
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.draws import normal, uniform
from ldm.diffusion.experts import Expert
from ldm.diffusion.loss import diffusion_loss, stratified_losses
from ldm.diffusion.noise import NoiseDistribution, stratify
from ldm.first_stage.spec import LatentSpec
from ldm.generate import Sampling, generate
from ldm.images import grid
from ldm.training.optim import Schedule
from ldm.training.task import Batch, Task

NUM_VALIDATION_LEVELS = 4


class DiffusionTask(Task):
    """Trains `denoiser` (and the trainable conditioners) on `expert`'s part of `noise`.

    `keep_latents`: encode each training image once, at the start, and keep it in memory; not with random augmentation.
    `single_factor`: take only a first stage whose latents are whitened by one factor (`scale_by_std`, as published).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        conditioner: Conditioners,
        first_stage: nn.Module,
        noise: NoiseDistribution,
        weighting: Callable[[Tensor], Tensor],
        expert: Expert,
        sampling: Sampling,
        optimizer: Callable,
        lr: Schedule,
        ema: partial | None,
        max_steps: int,
        seed: int,
        data: ShardData,
        keep_latents: bool = False,
        single_factor: bool = False,
    ):
        spec = first_stage.spec
        if single_factor and (any(spec.mean) or len(set(spec.std)) > 1):
            raise ValueError(
                "task.single_factor: this model is for latents whitened by one factor, and the first stage whitens "
                "each channel by its own mean and std: train it with task.single_factor=true too, or set it false here"
            )
        if keep_latents and data.augments:
            raise ValueError(
                "task.keep_latents keeps one latent per image, but data.horizontal_flip_prob or data.random_crop "
                "changes images: set task.keep_latents=false or switch the augmentation off"
            )
        model = nn.ModuleDict({"network": denoiser.network, "conditioner": conditioner})
        super().__init__(
            model=model, trained=model, optimizer=optimizer, lr=lr, ema=ema, max_steps=max_steps, seed=seed
        )
        self.denoiser = denoiser
        self.conditioner = conditioner
        self.first_stage = first_stage
        self.noise = expert.restrict(noise)
        self.intervals = expert.intervals(noise)
        self.weighting = weighting
        self.sampling = sampling
        self.batch_size = data.batch_size
        self.keep_latents = keep_latents
        self._kept: Tensor | None = None  # moments [N, ...] of the training images, by index

    def on_fit_start(self) -> None:
        if self.keep_latents:
            self._kept = self._encode_all(self.trainer.datamodule)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Mean over the batch of w(sigma) |D(x0 + sigma n; sigma) - x0|^2, every draw addressed by sample number."""
        numbers = batch["number"]
        moments = self.moments(batch["image"]) if self._kept is None else self._kept[batch["index"]]
        x0 = self.latents(moments, purpose="posterior", numbers=numbers)
        u = stratify(uniform(self.seed, "sigma", numbers)[:, 0], numbers, self.batch_size)
        sigma = self.noise.icdf(u)
        noise = normal(self.seed, "noise", numbers, x0.shape[1:])
        cond = self.conditioner(batch, drop=self.conditioner.draw_drop(self.seed, numbers))
        losses = diffusion_loss(self.denoiser, x0, sigma.to(x0), noise, cond, self.weighting)
        self.logs = {"loss": losses.mean().detach()}
        return losses.mean()

    @torch.no_grad()
    def moments(self, image: Tensor) -> Tensor:
        """What the first stage's latents of images [B, 3, H, W] are drawn from."""
        return self.first_stage.moments(image)

    def latents(self, moments: Tensor, purpose: str, numbers: Tensor) -> Tensor:
        """Whitened latents [B, C, h, w], drawn from their posterior by noise addressed by `numbers` [B]."""
        shape = (self.first_stage.spec.channels, *moments.shape[2:])
        return self.first_stage.sample(moments, normal(self.seed, purpose, numbers, shape))

    def _encode_all(self, data: ShardData) -> Tensor:
        """Moments of all training images, in batches that are the same at every start: a resume sees the same bits."""
        kept = None
        with self.trainer.precision_plugin.forward_context():
            for batch in data.statistics_loader(batch_size=64):
                moments = self.moments(batch["image"].to(self.device))
                kept = moments.new_zeros(data.num_train, *moments.shape[1:]) if kept is None else kept
                kept[batch["index"].to(self.device)] = moments
        return kept

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """The training loss at `NUM_VALIDATION_LEVELS` stratified noise levels per sample, all conditions given."""
        index = batch["index"]
        x0 = self.latents(self.moments(batch["image"]), purpose="validation posterior", numbers=index)
        cond = self.conditioner(batch, drop=self.conditioner.drop_none(len(index)))
        losses = stratified_losses(
            self.denoiser, x0, cond, self.noise, self.weighting, self.seed, index, NUM_VALIDATION_LEVELS
        )
        return {"loss": losses}

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """Samples for the captions or labels of held-out images, below the images themselves."""
        image = batch["image"]
        made = generate(
            self.denoiser, self.conditioner, self.first_stage, self.sampling,
            batch, batch["index"], self.seed, image.shape[-1],
        )  # fmt: skip
        return {"samples": grid(torch.cat([image, made]), columns=len(image))}

    def describe(self) -> dict[str, Any]:
        """The noise levels this denoiser is for, as an ensemble needs them, and the latent space it lives in."""
        return {"intervals": self.intervals, "latent": self.first_stage.spec.to_dict()}

    def accept(self, description: dict[str, Any]) -> None:
        """A model of the same latent space; an expert may start from a denoiser for other noise levels."""
        LatentSpec.from_dict(description["latent"]).check(self.first_stage.spec)

    def conclude(self, batches: Iterable[Batch]) -> dict[str, Any]:
        """Nothing that was not known before."""
        return {}
