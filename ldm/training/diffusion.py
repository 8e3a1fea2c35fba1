"""Stage two and experts: a denoiser on the latents of a frozen first stage, for all noise or an expert's part of it."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldm.charts import Curve
from ldm.conditioners.base import CHECKED, Conditioners
from ldm.data.module import ShardData
from ldm.diffusion.cond import Condition
from ldm.diffusion.counter_random import normal, uniform
from ldm.diffusion.denoiser import ConditionalDenoise, Denoiser
from ldm.diffusion.experts import Expert
from ldm.diffusion.log_variance import LogVariance, uncertain
from ldm.diffusion.loss import Loss, diffusion_loss, stratified_losses
from ldm.diffusion.noise import NoiseDistribution, stratify
from ldm.diffusion.objective import Objective
from ldm.diffusion.resampling import LossHistory
from ldm.errors import UserError
from ldm.first_stage.first_stage import moments_of
from ldm.first_stage.spec import LatentSpec
from ldm.generate import NotFinite, check_guidance, generate
from ldm.images import grid
from ldm.networks.layers import tuned
from ldm.networks.offloading import offloaded
from ldm.sampling import Sampling
from ldm.training.distributed import all_reduce_sum
from ldm.training.expert_quality import ExpertQuality
from ldm.training.judged import Asked, Company, Judged
from ldm.training.optim import LRSchedule
from ldm.training.representation import Representation
from ldm.training.sample_quality import SampleQuality
from ldm.training.task import Batch, Task

NUM_VALIDATION_LEVELS = 4
DROP = "conditioner.drop"  # a key of batches: what `Conditioners.draw_drop` has drawn
NUM_CURVE_LEVELS = 101  # of a curve over the noise


class DiffusionTask(Task):
    """Trains `denoiser` (and the trainable conditioners) on `expert`'s part of `noise`.

    `objective`: what its errors are, of the optimizer steps done too.
    `resampler`: draws the levels with large losses more often.
    `log_variance`: a learned scale of the loss at each noise level, by which it is divided.
    `representation`: what the network's middle is aligned with, beside the loss.
    `keep_latents`: encode each training image once, at the start, and keep it in memory; not with random augmentation.
    `compile`: compile the network, block by block or whole, which takes minutes and then pays on GPUs.
    `offload_activations`: keep those of the network in the CPU's memory until the backward pass.
    `single_factor`: take only a first stage whose latents are whitened by one factor (`scale_by_std`, as published).
    """

    kind = "diffusion"

    def __init__(
        self,
        denoiser: Denoiser,
        conditioner: Conditioners,
        first_stage: nn.Module,
        noise: NoiseDistribution,
        weighting: Callable[[Tensor], Tensor],
        loss: Loss,
        objective: Objective,
        expert: Expert,
        sampling: Sampling,
        optimizer: Callable,
        lr: LRSchedule,
        ema: partial | None,
        max_steps: int,
        seed: int,
        data: ShardData,
        resampler: LossHistory | None = None,
        log_variance: LogVariance | None = None,
        representation: Representation | None = None,
        keep_latents: bool = False,
        single_factor: bool = False,
        compile: bool | Literal["blocks", "whole"] = False,
        guard: partial | None = None,
        offload_activations: bool = False,
    ):
        spec = first_stage.spec
        if spec.discrete:
            raise UserError("first_stage: its latents are tokens, and task=diffusion is for real numbers")
        if single_factor and (any(spec.mean) or len(set(spec.std)) > 1):
            raise UserError(
                "task.single_factor: this model is for latents whitened by one factor, and the first stage whitens "
                "each channel by its own mean and std: train it with task.single_factor=true too, or set it false here"
            )
        if keep_latents and data.augments:
            raise UserError(
                "task.keep_latents keeps one latent per image, but data.horizontal_flip_prob or data.random_crop "
                "changes images: set task.keep_latents=false or switch the augmentation off"
            )
        if keep_latents and data.cache is not None:
            raise UserError(
                "task.keep_latents keeps in memory what data.cache has on disk already: set task.keep_latents=false"
            )
        model = nn.ModuleDict({"network": denoiser.network, "conditioner": conditioner})  # type: ignore[dict-item]  # networks are modules
        if representation is not None and compile:
            raise UserError("task.compile=true: a compiled network shows none of its layers to representation=")
        aligned = representation.head(denoiser.network) if representation is not None else None  # type: ignore[arg-type]  # networks are modules
        only_training = {"resampler": resampler, "log_variance": log_variance, "representation": aligned}
        trained = nn.ModuleDict({**model, **{name: part for name, part in only_training.items() if part is not None}})
        super().__init__(
            model=model,
            trained=trained,
            optimizer=optimizer,
            lr=lr,
            ema=ema,
            max_steps=max_steps,
            seed=seed,
            guard=guard,
        )
        self.denoiser = denoiser
        self.conditioner = conditioner
        self.first_stage = first_stage
        self.noise = expert.restrict(noise)
        self.intervals = expert.intervals(noise)
        self.weighting = weighting
        self.loss = loss
        self.objective = objective
        self.resampler = resampler
        self.log_variance = log_variance
        self.aligned = aligned
        self.sampling = sampling if conditioner.parts else sampling.with_scale(1.0)  # nothing there to guide by
        check_guidance(self.sampling.guidance, conditioner)
        self.batch_size = data.batch_size
        self.window_size = data.framing.window
        self.keep_latents = keep_latents
        self.compile_network = compile
        self.offload_activations = offload_activations
        self.company: Company | None = None  # of an expert, where it is measured
        self._kept: Tensor | None = None  # moments [N, ...] of the training images, by index

    def configure_model(self) -> None:
        tuned(self.denoiser.network, self.trainer.strategy.root_device, self.compile_network)  # type: ignore[type-var]  # networks are modules

    def on_fit_start(self) -> None:
        if self.keep_latents:
            self._kept = self._encode_all(self.trainer.datamodule)  # type: ignore[attr-defined]  # Lightning sets it

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """What the processor has to know of a batch is settled before the device has it: no step waits for that."""
        with self.samples_named(batch):
            self.conditioner.check_values(batch)
        return {**batch, CHECKED: True, DROP: self.conditioner.draw_drop(self.seed, batch["number"])}

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Mean over the batch of the loss of the objective's errors, every draw addressed by sample number."""
        numbers = batch["number"]
        moments = moments_of(self.first_stage, batch) if self._kept is None else self._kept[batch["index"]]
        x0 = self.latents(moments, purpose="posterior", numbers=numbers)
        u = stratify(uniform(self.seed, "sigma", numbers)[:, 0], numbers, self.batch_size)
        quantile, weight = self.resampler(u) if self.resampler is not None else (u, torch.ones_like(u))
        sigma = self.noise.icdf(quantile).to(x0)
        noise = normal(self.seed, "noise", numbers, x0.shape[1:])
        with self.samples_named(batch):
            drop = batch[DROP] if DROP in batch else self.conditioner.draw_drop(self.seed, numbers)
            cond = self.conditioner(batch, drop=drop)
        self.stopwatch.lap("encode")
        with offloaded(self.denoiser) if self.offload_activations else nullcontext():
            losses = diffusion_loss(self.denoiser, x0, sigma, noise, cond, self.weighting, self.loss, self._errors)
        objective = self._objective(losses, sigma, quantile, weight.to(losses), batch_index)
        if self.aligned is None:
            return objective
        distance = self.aligned(batch).mean()
        self.logs["representation"] = distance.detach()
        return objective + self.aligned.representation.weight * distance

    def _errors(
        self, denoiser: ConditionalDenoise, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Condition
    ) -> Tensor:
        """The objective's errors after the steps that are done."""
        return self.objective(denoiser, x0, sigma, noise, cond, self.step)

    def _objective(self, losses: Tensor, sigma: Tensor, quantile: Tensor, weight: Tensor, batch_index: int) -> Tensor:
        """What is minimised, a scalar: `losses` [B] scaled by what is learned of them, each with its importance."""
        self.logs = {"loss": (weight * losses).mean().detach()}
        terms = scaled = losses
        if self.log_variance is not None:
            u = self.log_variance(sigma)
            terms = uncertain(losses, u)
            scaled = terms - u
            self.logs["uncertain_loss"] = (weight * terms).mean().detach()
        if self.resampler is not None:
            self.resampler.record(quantile, scaled.detach())
            if (batch_index + 1) % self.trainer.accumulate_grad_batches == 0:
                self.resampler.update(all_reduce_sum)
        return (weight * terms).mean()

    def latents(self, moments: Tensor, purpose: str, numbers: Tensor) -> Tensor:
        """Whitened latents [B, ...], drawn from their posterior by noise addressed by `numbers` [B]."""
        shape = self.first_stage.spec.shape(moments.shape[2:])
        return self.first_stage.sample(moments, normal(self.seed, purpose, numbers, shape))

    @torch.no_grad()
    def _encode_all(self, data: ShardData) -> Tensor:
        """Moments of all training images, in batches that are the same at every start: a resume sees the same bits."""
        kept = None
        with self.trainer.precision_plugin.forward_context():
            for batch in data.statistics_loader(batch_size=64):
                moments = self.first_stage.moments(batch[self.first_stage.key].to(self.device))
                kept = moments.new_zeros(data.num_train, *moments.shape[1:]) if kept is None else kept
                kept[batch["index"].to(self.device)] = moments
        return kept

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """The training loss at `NUM_VALIDATION_LEVELS` stratified noise levels per sample, all conditions given."""
        index = batch["index"]
        x0 = self.latents(moments_of(self.first_stage, batch), purpose="validation posterior", numbers=index)
        with self.samples_named(batch, held_out=True):
            cond = self.conditioner(batch, drop=self.conditioner.drop_none(len(index)))
        losses = stratified_losses(
            self.denoiser, x0, cond, self.noise, self.weighting, self.seed, index, NUM_VALIDATION_LEVELS, self.loss,
            self._errors,
        )  # fmt: skip
        return {"loss": losses}

    @property
    def held_out(self) -> tuple[str, ...]:
        return ("loss",)

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """Samples for the captions or labels of held-out images, below the images themselves; none without images.

        An expert draws them in its company, where it has any.
        """
        if "image" not in batch:
            return {}
        image = batch["image"]
        with self.company.on(self.device) if self.company else nullcontext():
            draw = self.company.draw if self.company else self.draw
            try:
                made = draw(self.sampling, batch, batch["index"], self.seed)
            except NotFinite as error:
                made = error.images
        return {"samples": grid(torch.cat([image, made]), columns=len(image))}

    def draw(self, sampling: Sampling, batch: Batch, numbers: Tensor, seed: int) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] of the training's size, for a batch and what `numbers` [B] address."""
        return generate(
            self.denoiser, self.conditioner, self.first_stage, sampling, batch, numbers, seed, self.window_size
        )

    def judged(self, asked: Asked) -> Judged:
        """Samples, against the training images; of an expert those that it draws in company."""
        if asked.company is not None:
            self.company = None if asked.company.lacks() else asked.company
            return ExpertQuality(asked, asked.company, self.sampling)
        return SampleQuality(
            asked, self.draw, self.sampling, lambda sampling: check_guidance(sampling.guidance, self.conditioner)
        )

    def curves(self) -> dict[str, Curve]:
        """Over ln(sigma): the learned log-variance, and how often the resampler draws what the noise draws once."""
        found = {}
        if self.resampler is not None:
            density = self.resampler.probabilities() * len(self.resampler.squares)
            middles = (torch.arange(len(density), dtype=torch.float64) + 0.5) / len(density)
            ln_sigma = self.noise.icdf(middles).log().tolist()
            found["resampling"] = Curve("ln sigma", "draws over the noise's own", ln_sigma, density.tolist())
        if self.log_variance is not None:
            found["log_variance"] = self._log_variance_curve()
        return found

    def _log_variance_curve(self) -> Curve:
        """From the 0.001 to the 0.999 quantile of the training noise."""
        lo, hi = self.noise.icdf(torch.tensor([1e-3, 1 - 1e-3], dtype=torch.float64)).log().tolist()
        ln_sigma = torch.linspace(lo, hi, NUM_CURVE_LEVELS)
        u = self.log_variance(ln_sigma.exp().to(self.device)).detach()
        return Curve("ln sigma", "log-variance", ln_sigma.tolist(), u.tolist())

    def describe(self) -> dict[str, Any]:
        """The noise levels this denoiser is for, as an ensemble needs them, and the latent space it lives in."""
        return {"intervals": self.intervals, "latent": self.first_stage.spec.to_dict()}

    def accept(self, description: dict[str, Any]) -> None:
        """A model of the same latent space; an expert may start from a denoiser for other noise levels."""
        LatentSpec.from_dict(description["latent"]).check(self.first_stage.spec)

    def conclude(self, batches: Iterable[Batch]) -> dict[str, Any]:
        """Nothing: the training adds no further facts."""
        return {}
