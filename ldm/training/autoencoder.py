"""Stage one: an autoencoder that reconstructs images, against a patch discriminator (arXiv 2112.10752, 3.1)."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ldm.charts import Curve
from ldm.diffusion.counter_random import normal
from ldm.errors import UserError
from ldm.first_stage.first_stage import reconstruct
from ldm.first_stage.statistics import LatentStatistics
from ldm.images import grid
from ldm.networks.layers import tuned
from ldm.training.distributed import gather, mean_over_ranks
from ldm.training.judged import Asked, Judged
from ldm.training.optim import LRSchedule
from ldm.training.reconstruction_quality import ReconstructionQuality
from ldm.training.task import Batch, Task


class AutoencoderTask(Task):
    """Trains `autoencoder` and `regularizer`; the discriminator and the loss's own parameters live only in training.

    `single_factor`: latents are whitened by one standard deviation over all channels, as the published models are, not
    by each channel's own mean and standard deviation. `whiten` false: they are taken as they come, to compare with
    (arXiv 2112.10752, D.1).
    """

    kind = "first_stage"

    def __init__(
        self,
        autoencoder: nn.Module,
        regularizer: nn.Module,
        reconstruction: nn.Module,
        optimizer: Callable,
        lr: LRSchedule,
        ema: partial | None,
        max_steps: int,
        seed: int,
        single_factor: bool = False,
        guard: partial | None = None,
        whiten: bool = True,
    ):
        model = nn.ModuleDict({"autoencoder": autoencoder, "regularizer": regularizer})
        trained = nn.ModuleDict({**model, "reconstruction": reconstruction})
        if single_factor and not whiten:
            raise UserError("task.whiten=false: leaves no factor, and task.single_factor=true asks for one")
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
        self.autoencoder = autoencoder
        self.regularizer = regularizer
        self.reconstruction = reconstruction
        self.single_factor = single_factor
        self.whiten = whiten

    def configure_model(self) -> None:
        tuned(self.autoencoder, self.trainer.strategy.root_device)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One forward of the autoencoder; the returned scalar's gradients train it and the discriminator."""
        image = batch["image"]
        moments = self.autoencoder.encode(image)
        noise = self._noise("posterior", batch["number"], moments)
        z, terms = self.regularizer(moments, noise)
        output = self.autoencoder.decode(z)
        last_layer = self.autoencoder.last_layer
        loss, self.logs = self.reconstruction(image, output, terms, last_layer, self.step, mean_over_ranks)
        self.logs |= self.regularizer.stats(moments)
        return loss

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """L1, LPIPS and PSNR (dB) of each reconstruction from the posterior's mode."""
        image = batch["image"]
        output = self.reconstruct(image)
        squared = (output - image).square().flatten(1).mean(1)
        return {**self.reconstruction.distances(image, output), "psnr": 10 * torch.log10(4 / squared.clamp(min=1e-10))}

    @property
    def held_out(self) -> tuple[str, ...]:
        return (*self.reconstruction.distance_names, "psnr")

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """Images and, below them, their reconstructions."""
        image = batch["image"]
        return {"reconstructions": grid(torch.cat([image, self.reconstruct(image)]), columns=len(image))}

    def judged(self, asked: Asked) -> Judged:
        """Reconstructions of held-out images."""
        return ReconstructionQuality(asked, self.reconstruct)

    def curves(self) -> dict[str, Curve]:
        """None: a first stage knows no noise levels."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Nothing: a first stage does not depend on another model."""
        return {}

    def accept(self, description: dict[str, Any]) -> None:
        """Accepts any: the names and shapes of the weights are check enough."""

    def conclude(self, batches: Iterable[Batch]) -> dict[str, Any]:
        """Mean and standard deviation of what the first stage's `encode` returns, over all ranks' `batches`."""
        statistics = LatentStatistics(self.regularizer.latent_channels)
        for batch in batches:
            moments = self.autoencoder.encode(batch["image"].to(self.device))
            statistics.update(self.regularizer.sample(moments, self._noise("statistics", batch["index"], moments)))
        over_ranks = LatentStatistics(self.regularizer.latent_channels)
        for state in gather(statistics.to_tensor().to(self.device)):
            over_ranks.merge(LatentStatistics.from_tensor(state))
        return {"latent": over_ranks.summary(self.single_factor, self.whiten)}

    def reconstruct(self, image: Tensor) -> Tensor:
        """The autoencoder's reconstruction [B, 3, H, W], clamped to [-1, 1], without sampling noise."""
        return reconstruct(self.autoencoder, self.regularizer, image)

    def _noise(self, purpose: str, numbers: Tensor, moments: Tensor) -> Tensor:
        return normal(self.seed, purpose, numbers, (self.regularizer.latent_channels, *moments.shape[2:]))
