"""The auxiliary run of classifier guidance: a classifier on noisy latents of a frozen first stage, for all noise.

After ADM (arXiv 2105.05233, section 4.2), here in latent space as LDM-8-G of arXiv 2112.10752, table 10.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.charts import Curve
from ldm.conditioners.base import CHECKED
from ldm.conditioners.classes import check_classes
from ldm.data.module import ShardData
from ldm.diffusion.classifier import NoisyClassifier
from ldm.diffusion.counter_random import normal, uniform
from ldm.diffusion.denoiser import expand
from ldm.diffusion.noise import NoiseDistribution, stratify
from ldm.errors import UserError
from ldm.first_stage.first_stage import moments_of
from ldm.first_stage.spec import LatentSpec
from ldm.images import grid
from ldm.training.optim import LRSchedule
from ldm.training.task import Batch, Task

NUM_VALIDATION_LEVELS = 4


class ClassifierTask(Task):
    """Trains `classifier` to predict batch["label"] from x0 + sigma n, sigma drawn from `noise`, by cross-entropy."""

    kind = "classifier"

    def __init__(
        self,
        classifier: NoisyClassifier,
        first_stage: nn.Module,
        noise: NoiseDistribution,
        optimizer: Callable,
        lr: LRSchedule,
        ema: partial | None,
        max_steps: int,
        seed: int,
        data: ShardData,
        guard: partial | None = None,
    ):
        if "label" not in data.fields:
            raise UserError(
                "data: a classifier learns from labels, and data.fields has none; choose data=labelled_shards"
            )
        model = nn.ModuleDict({"network": classifier.network})  # type: ignore[dict-item]  # networks are modules
        super().__init__(
            model=model,
            trained=model,
            optimizer=optimizer,
            lr=lr,
            ema=ema,
            max_steps=max_steps,
            seed=seed,
            guard=guard,
        )
        self.classifier = classifier
        self.first_stage = first_stage
        self.noise = noise
        self.batch_size = data.batch_size

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Labels are looked at before the device has them: then no step waits for that."""
        with self.samples_named(batch):
            self._labels(batch)
        return {**batch, CHECKED: True}

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Mean cross-entropy of the batch, every draw addressed by sample number."""
        numbers = batch["number"]
        x0 = self._latents(batch, "posterior", numbers)
        self.stopwatch.lap("encode")
        u = stratify(uniform(self.seed, "sigma", numbers)[:, 0], numbers, self.batch_size)
        sigma = self.noise.icdf(u).to(x0)
        noise = normal(self.seed, "noise", numbers, x0.shape[1:])
        logits = self.classifier(x0 + expand(sigma, x0) * noise, sigma)
        with self.samples_named(batch):
            label = batch["label"] if CHECKED in batch else self._labels(batch)
        losses = F.cross_entropy(logits, label)
        self.logs = {"loss": losses.detach(), "accuracy": (logits.argmax(1) == label).float().mean()}
        return losses

    def _labels(self, batch: Batch) -> Tensor:
        check_classes(batch["label"], self.classifier.network.num_classes, "label", "network.num_classes")  # type: ignore[attr-defined]  # of a classifier, by its contract
        return batch["label"]

    def _latents(self, batch: Batch, purpose: str, numbers: Tensor) -> Tensor:
        """Whitened latents [B, C, h, w] of a batch, drawn by noise addressed by `numbers` [B]."""
        moments = moments_of(self.first_stage, batch)
        shape = self.first_stage.spec.shape(moments.shape[2:])
        return self.first_stage.sample(moments, normal(self.seed, purpose, numbers, shape))

    def _noisy(self, batch: Batch, level: int) -> tuple[Tensor, Tensor]:
        """Held-out latents and their noise levels, in one of `NUM_VALIDATION_LEVELS` strata, the lowest first."""
        index = batch["index"]
        x0 = self._latents(batch, "validation posterior", index)
        u = (uniform(self.seed, "validation sigma", index, stream=level)[:, 0] + level) / NUM_VALIDATION_LEVELS
        sigma = self.noise.icdf(u).to(x0)
        noise = normal(self.seed, "validation noise", index, x0.shape[1:], stream=level)
        return x0 + expand(sigma, x0) * noise, sigma

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy and accuracy, over all strata of the noise and, as accuracy_noise_<n>, in each."""
        with self.samples_named(batch, held_out=True):
            label = self._labels(batch)
        losses, hits = [], []
        for level in range(NUM_VALIDATION_LEVELS):
            logits = self.classifier(*self._noisy(batch, level))
            losses.append(F.cross_entropy(logits, label, reduction="none"))
            hits.append((logits.argmax(1) == label).float())
        by_level = {f"accuracy_noise_{level}": hit for level, hit in enumerate(hits)}
        return {"loss": torch.stack(losses).mean(0), "accuracy": torch.stack(hits).mean(0), **by_level}

    @property
    def held_out(self) -> tuple[str, ...]:
        return ("loss", "accuracy", *(f"accuracy_noise_{level}" for level in range(NUM_VALIDATION_LEVELS)))

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """Held-out images and, below them, what the classifier is shown of them in each stratum, decoded."""
        rows = [batch["image"]]
        for level in range(NUM_VALIDATION_LEVELS):
            x, sigma = self._noisy(batch, level)
            rows.append(self.first_stage.decode(x / expand((1 + sigma**2).sqrt(), x)).float().clamp(-1, 1))
        return {"noisy": grid(torch.cat(rows), columns=len(batch["image"]))}

    def curves(self) -> dict[str, Curve]:
        """None: its accuracy at each level of noise is a metric."""
        return {}

    def describe(self) -> dict[str, Any]:
        """The latent space whose noise it has seen."""
        return {"latent": self.first_stage.spec.to_dict()}

    def accept(self, description: dict[str, Any]) -> None:
        """A classifier of the same latent space."""
        if "latent" not in description or "intervals" in description:
            raise UserError("branch: not a classifier's run; a classifier starts from nothing or from another one")
        LatentSpec.from_dict(description["latent"]).check(self.first_stage.spec)

    def conclude(self, batches: Iterable[Batch]) -> dict[str, Any]:
        """Nothing: the training adds no further facts."""
        return {}
