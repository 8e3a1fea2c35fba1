"""Regularisers of the latent: KL to a standard normal, or vector quantisation (arXiv 2112.10752, section 3.1).

A regulariser is called with the encoder's output and returns (z, {name: loss}); it says how many channels the
encoder must give (`moment_channels`) and how wide the latent is (`latent_channels`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Losses = dict[str, Tensor]


class KL(nn.Module):
    """A diagonal Gaussian latent, drawn towards N(0, 1): loss "kl" = 0.5 sum(mu^2 + var - 1 - log var) per sample."""

    num_codes = 0

    def __init__(self, channels: int):
        super().__init__()
        self.latent_channels = channels
        self.moment_channels = 2 * channels

    def forward(self, h: Tensor, noise: Tensor | None) -> tuple[Tensor, Losses]:
        """h [B, 2C, H, W], noise [B, C, H, W] or None for the mean -> z [B, C, H, W] and the loss, a batch mean."""
        mean, logvar = _moments(h)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)
        return self.sample(h, noise), {"kl": kl.mean()}

    def sample(self, h: Tensor, noise: Tensor | None) -> Tensor:
        """mu + exp(log var / 2) noise; the mean where `noise` is None."""
        mean, logvar = _moments(h)
        return mean if noise is None else mean + (0.5 * logvar).exp() * noise

    def quantise(self, z: Tensor) -> Tensor:
        """z itself: a Gaussian latent is not quantised."""
        return z

    @torch.no_grad()
    def stats(self, h: Tensor) -> Losses:
        """Of the posterior over the batch: "latent_std" of a sample, and the part of it that is noise, "noise_std"."""
        mean, logvar = _moments(h)
        variance = logvar.exp().mean()
        return {"latent_std": (mean.var() + variance).sqrt(), "noise_std": variance.sqrt()}


def _moments(h: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = h.float().chunk(2, dim=1)
    return mean, logvar.clamp(-30.0, 20.0)


class VQ(nn.Module):
    """The nearest of `num_codes` codes at each position, gradients passed straight through (arXiv 1711.00937).

    Loss "codebook" = mean |sg[z] - e|^2 + beta mean |z - sg[e]|^2. With `legacy`, beta is on the other term, as in
    the published models.
    """

    counts: Tensor  # uses of each code in the last batch trained on; not saved

    def __init__(self, channels: int, num_codes: int, beta: float = 0.25, legacy: bool = False):
        super().__init__()
        self.latent_channels = channels
        self.moment_channels = channels
        self.beta = beta
        self.legacy = legacy
        self.num_codes = num_codes
        self.embedding = nn.Embedding(num_codes, channels)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)
        self.register_buffer("counts", torch.zeros(num_codes), persistent=False)

    def forward(self, h: Tensor, noise: Tensor | None) -> tuple[Tensor, Losses]:
        """h [B, C, H, W] -> its codes [B, C, H, W] and the loss; `noise` is not used."""
        h = h.float()
        indices = self.indices(h)
        codes = self.lookup(indices)
        if self.training:
            self._count(indices)
        to_codes = F.mse_loss(codes, h.detach())
        to_encoder = F.mse_loss(h, codes.detach())
        loss = self.beta * to_codes + to_encoder if self.legacy else to_codes + self.beta * to_encoder
        return h + (codes - h).detach(), {"codebook": loss}

    def sample(self, h: Tensor, noise: Tensor | None) -> Tensor:
        """The features before quantisation: they are what stage two models."""
        return h.float()

    def quantise(self, z: Tensor) -> Tensor:
        """z [B, C, H, W] -> the nearest code at each position; gradients pass straight through to z."""
        return self.lookup(self.indices(z)) + (z - z.detach())  # a zero, so that the codes stay exact

    def indices(self, z: Tensor) -> Tensor:
        """z [B, C, H, W] -> number of the nearest code, int64 [B, H, W]; in fp32, also under autocast."""
        z = z.detach().float().movedim(1, -1)
        codes = self.embedding.weight.detach().float()
        # |z - e|^2 without |z|^2, which is the same for all codes. In bf16 many codes would seem equally near.
        with torch.autocast(z.device.type, enabled=False):
            distances = torch.addmm(codes.square().sum(1), z.flatten(0, -2), codes.t(), alpha=-2)
        return distances.argmin(1).view(z.shape[:-1])

    def lookup(self, indices: Tensor) -> Tensor:
        """Numbers [B, H, W] -> codes [B, C, H, W]."""
        return self.embedding(indices).movedim(-1, 1)

    def _count(self, indices: Tensor) -> None:
        # bincount waits for the device; sums of ones are exact up to 2^24, in any order
        ones = torch.ones_like(indices.flatten(), dtype=self.counts.dtype)
        self.counts = torch.zeros_like(self.counts).index_add_(0, indices.flatten(), ones)

    @torch.no_grad()
    def stats(self, h: Tensor) -> Losses:
        """Of the last batch trained on: "usage", the share of codes that occur, and "perplexity" of their use.

        The perplexity, exp of the entropy, is the number of codes that would be used as evenly. h is not looked at.
        """
        share = self.counts / self.counts.sum().clamp(min=1)
        return {"usage": (self.counts > 0).float().mean(), "perplexity": torch.special.entr(share).sum().exp()}
