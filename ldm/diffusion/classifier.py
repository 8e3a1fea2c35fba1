"""A classifier of noisy latents: a network told the noise level, `(x, sigma) -> logits` (arXiv:2105.05233, section 4).

What guidance needs of it is log p(y | x; sigma); gradients and scales are guidance's own.
"""

from collections.abc import Callable

from torch import Tensor, nn

from ldm.diffusion.denoiser import expand
from ldm.diffusion.schedule import Schedule


class NoisyClassifier(nn.Module):
    """Logits F(x / sqrt(1 + sigma^2), c_noise) of x = x0 + sigma noise, for whitened x0; fp32 in and out."""

    def __init__(self, network: Callable[[Tensor, Tensor], Tensor], schedule: Schedule):
        super().__init__()
        self.network = network
        self.schedule = schedule

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x [B, ...], sigma [B] > 0 -> logits [B, num_classes]."""
        x, sigma = x.float(), sigma.float()
        return self.network(x / expand((1 + sigma**2).sqrt(), x), self.schedule.c_noise(sigma)).float()

    def log_prob(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        """log p(label | x; sigma) [B] for labels [B]."""
        return self(x, sigma).log_softmax(-1).gather(1, label[:, None])[:, 0]
