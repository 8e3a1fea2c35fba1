"""A probe for what a first stage is for: how well a small diffusion model of fixed budget generates in its latents.

The best reconstruction is not the best latent space (arXiv 2112.10752, figure 6): this logs both along one training.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm.data.module import ShardData
from ldm.diffusion.counter_random import normal, uniform
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.loss import diffusion_loss
from ldm.diffusion.noise import LogNormal, stratify
from ldm.diffusion.precond import EDM
from ldm.diffusion.samplers import dpmpp_2m
from ldm.diffusion.schedule import VE
from ldm.diffusion.sigmas import init_noise, karras
from ldm.diffusion.weighting import Native
from ldm.errors import UserError
from ldm.images import grid, save_image
from ldm.metrics.features import Features
from ldm.metrics.quality import sample_quality
from ldm.networks.unet import UNet
from ldm.training.callbacks.group import members
from ldm.training.callbacks.signals import StopOnSignal
from ldm.training.ema import EMA
from ldm.training.loggers import log_picture
from ldm.training.task import Task

SAY_EVERY_SECONDS = 30.0
SMALLEST = 4  # positions per side at the lowest level of the probe's network
SHOWN = 16  # samples in the picture


class LatentProbe(pl.Callback):
    """Every `every_steps` steps and at the end: log ``probe/<metric>`` of `num_samples` generated images.

    A U-Net of width `channels` is fitted for `fit_steps` steps to the latents of `num_images` training images, whitened
    by their own statistics, with the same draws each time, and compared with those images. It runs on rank zero while
    the others wait, and leaves the training bit for bit as it was. A signal that stops the run ends it without a value.
    """

    def __init__(
        self,
        metric: Features,
        data: ShardData,
        folder: Path,
        seed: int,
        every_steps: int = 10_000,
        num_images: int = 2048,
        num_samples: int = 1024,
        fit_steps: int = 1000,
        batch_size: int = 64,
        channels: int = 64,
        num_steps: int = 20,
        lr: float = 1e-3,
    ):
        if min(num_images, num_samples) < 2:
            raise UserError("callback.latent_probe: num_images and num_samples must be at least 2")
        self.metric = metric
        self.data = data
        self.folder = folder
        self.seed = seed
        self.every_steps = every_steps
        self.num_images = num_images
        self.num_samples = num_samples
        self.fit_steps = fit_steps
        self.batch_size = batch_size
        self.channels = channels
        self.num_steps = num_steps
        self.lr = lr
        self._real: Tensor | None = None  # features of the training images

    def check(self, task: Task) -> None:
        """Raises ValueError if a task has no latents of its own."""
        if not hasattr(task, "autoencoder"):
            raise UserError("callback.latent_probe: only a first stage's latents can be probed (task=autoencoder)")

    def on_train_batch_end(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        if task.stepped and (task.step % self.every_steps == 0 or task.step == task.max_steps):
            if trainer.is_global_zero:
                with torch.random.fork_rng(devices=[task.device] if task.device.type == "cuda" else []):
                    try:
                        self.probe(trainer, task)
                    except _Stopped:
                        print(f"step {task.step}: not probed to the end, the run was asked to stop", flush=True)
            trainer.strategy.barrier()

    def probe(self, trainer: pl.Trainer, task: Task) -> dict[str, float]:
        """Measure the current averaged first stage, and log it. Returns what was logged."""
        self.check(task)
        ahead = _Ahead(trainer, f"step {task.step}, probe of the latents")
        began = time.monotonic()
        self.metric.to(task.device)
        with task.averaged():
            moments, real = self._moments(task, ahead)
            z = task.regularizer.sample(moments, self._normal("posterior", moments, task.regularizer.latent_channels))
            mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3)).clamp(min=1e-6)
        z = (z - mean[:, None, None]) / std[:, None, None]
        denoiser, loss = self._fit(z, trainer, ahead)
        with task.averaged():
            features: list[Tensor] = []
            shown: list[Tensor] = []
            for generated in self._latents(denoiser, z, ahead):
                whole = generated * std[:, None, None] + mean[:, None, None]
                images = task.autoencoder.decode(task.regularizer.quantise(whole)).float().clamp(-1, 1)
                features.append(self.metric(images).cpu())
                shown += images.cpu() if len(shown) < SHOWN else []
        generator = torch.Generator().manual_seed(self.seed)
        table = sample_quality(real, torch.cat(features), self.metric.cpu(), generator)
        values = {**table, "loss": loss, "seconds": time.monotonic() - began}
        logged = {f"probe/{name}": value for name, value in values.items()}
        for logger in trainer.loggers:
            logger.log_metrics(logged, step=task.step)
        path = self.folder / "samples" / f"step_{task.step:08d}_probe.png"
        save_image(path, grid(torch.stack(shown[:SHOWN]), columns=8))
        log_picture(trainer.loggers, "panels/probe", path, task.step)
        return logged

    def _moments(self, task: Task, ahead: "_Ahead") -> tuple[Tensor, Tensor]:
        """Of the probe's images: what the encoder gives now [N, ...], and their features, which never change."""
        moments: list[Tensor] = []
        features: list[Tensor] = []
        for batch in self.data.statistics_loader(batch_size=self.batch_size, num_samples=self.num_images):
            ahead.go(f"has looked at {sum(len(part) for part in moments)} of {self.num_images} images")
            image = batch["image"].to(task.device)
            moments.append(task.autoencoder.encode(image).float())
            if self._real is None:
                features.append(self.metric(image).cpu())
        self._real = torch.cat(features) if self._real is None else self._real
        return torch.cat(moments), self._real

    def _fit(self, z: Tensor, trainer: pl.Trainer, ahead: "_Ahead") -> tuple[Denoiser, float]:
        """A denoiser of latents z [N, C, h, w], with averaged weights, and its mean loss over the last tenth."""
        torch.manual_seed(self.seed)
        halvings = 0
        while halvings < 2 and all(side % 2 ** (halvings + 1) == 0 for side in z.shape[2:]) and (
            min(z.shape[2:]) // 2 ** (halvings + 1) >= SMALLEST
        ):  # fmt: skip
            halvings += 1
        network = UNet(
            z.shape[1], z.shape[1], self.channels, (1, 2, 2)[: halvings + 1], num_blocks=1,
            attention_factors=[2**halvings], head_channels=32,
        ).to(z.device)  # fmt: skip
        denoiser = Denoiser(network, EDM(VE(0.002, 80.0, c_noise_scale=250.0), sigma_data=1.0))
        noise, weighting = LogNormal(-0.507, 1.2), Native(denoiser.precond)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.lr, fused=True)
        ema, losses = EMA(network, 0.999), []
        with torch.enable_grad():
            for step in range(self.fit_steps):
                ahead.go(f"has fitted {step} of {self.fit_steps} steps")
                numbers = torch.arange(step * self.batch_size, (step + 1) * self.batch_size, device=z.device)
                chosen = (uniform(self.seed, "probe sample", numbers)[:, 0] * len(z)).long().clamp(max=len(z) - 1)
                u = stratify(uniform(self.seed, "probe sigma", numbers)[:, 0], numbers, self.batch_size)
                n = normal(self.seed, "probe noise", numbers, z.shape[1:])
                with trainer.precision_plugin.forward_context():
                    loss = diffusion_loss(denoiser, z[chosen], noise.icdf(u).to(z), n, {}, weighting).mean()
                for group in optimizer.param_groups:
                    group["lr"] = self.lr * (1 - step / self.fit_steps)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                ema.update()
                losses.append(loss.detach())
        network.load_state_dict(ema.weights()["ema"])
        return denoiser.eval(), torch.stack(losses[-max(self.fit_steps // 10, 1) :]).mean().item()

    def _latents(self, denoiser: Denoiser, like: Tensor, ahead: "_Ahead") -> Iterator[Tensor]:
        """`num_samples` generated latents of the shape of those of `like` [N, C, h, w], batch by batch."""
        sigmas = karras(self.num_steps, 0.01, 80.0)
        for start in range(0, self.num_samples, self.batch_size):
            ahead.go(f"has made {start} of {self.num_samples} samples")
            numbers = torch.arange(start, min(start + self.batch_size, self.num_samples), device=like.device)
            first = normal(self.seed, "probe first noise", numbers, like.shape[1:])
            x = init_noise(first, sigmas[0].item(), denoiser.precond.schedule)  # type: ignore[attr-defined]  # of the probe's own denoiser
            yield dpmpp_2m(lambda x, sigma: denoiser(x, sigma, {}), x, sigmas)

    def _normal(self, purpose: str, like: Tensor, channels: int) -> Tensor:
        numbers = torch.arange(len(like), device=like.device)
        return normal(self.seed, f"probe {purpose}", numbers, (channels, *like.shape[2:]))


class _Stopped(Exception):
    """The run was asked to stop."""


class _Ahead:
    """Reports the progress of a long probe, and ends it when a signal stops the run."""

    def __init__(self, trainer: pl.Trainer, what: str):
        self.stops = [callback for callback in members(trainer) if isinstance(callback, StopOnSignal)]
        self.what = what
        self.said = time.monotonic()

    def go(self, done: str) -> None:
        """Raises _Stopped if there was a signal."""
        if any(callback.received for callback in self.stops):
            raise _Stopped
        if time.monotonic() - self.said > SAY_EVERY_SECONDS:
            self.said = time.monotonic()
            print(f"{self.what} {done}", flush=True)
