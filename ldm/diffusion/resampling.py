"""Importance sampling of noise levels by their past losses (arXiv:2102.09672, section 3.3).

It acts on quantiles of the training noise, not on sigma: any distribution, an expert's part of it and strata are served
alike. A quantile is drawn from the bins in proportion to sqrt(E[L^2]) and weighted so that the expected loss stays.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldm.errors import UserError


class LossHistory(nn.Module):
    """The last `history` mean squared losses of `num_bins` equal bins of quantiles, and the draws they suggest.

    Bins are equally likely until each has its whole history, and always share `uniform_prob` of the draws. The state
    changes in `update` alone, once per optimizer step, and is saved with what is trained.
    """

    def __init__(self, num_bins: int = 32, history: int = 10, uniform_prob: float = 0.001):
        for name, value in (("num_bins", num_bins), ("history", history)):
            if value < 1:
                raise UserError(f"resampler.{name}={value}: must be at least 1")
        if not 0 < uniform_prob <= 1:
            raise UserError(f"resampler.uniform_prob={uniform_prob:g}: must lie in (0, 1]")
        super().__init__()
        self.uniform_prob = uniform_prob
        self.register_buffer("squares", torch.zeros(num_bins, history, dtype=torch.float64))  # newest first
        self.register_buffer("lengths", torch.zeros(num_bins, dtype=torch.int64))  # how many of them there are
        self._seen = torch.zeros(2, num_bins, dtype=torch.float64)  # of this step so far: sums of squares, counts

    def probabilities(self) -> Tensor:
        """How likely each bin is, [num_bins] float64, adding up to 1."""
        num_bins, history = self.squares.shape
        uniform = self.squares.new_full((num_bins,), 1 / num_bins)
        scale = self.squares.mean(1).sqrt()
        learned = (1 - self.uniform_prob) * scale / scale.sum().clamp(min=1e-300) + self.uniform_prob * uniform
        known = (self.lengths == history).all() & (scale.sum() > 0)
        return torch.where(known, learned, uniform)

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Uniforms u [B] in (0, 1) -> quantiles [B] of the training noise, float64, and their weights [B].

        The map is increasing and linear in each bin, so strata stay strata; weights are 1 / (num_bins probability).
        """
        probabilities = self.probabilities()
        num_bins = len(probabilities)
        ends = probabilities.cumsum(0)
        k = torch.searchsorted(ends, u.double(), right=True).clamp(max=num_bins - 1)
        within = (u.double() - (ends[k] - probabilities[k])) / probabilities[k]
        quantile = (k + within.clamp(0, 1)) / num_bins
        return quantile.clamp(2.0**-53, 1 - 2.0**-53), 1 / (num_bins * probabilities[k])

    @torch.no_grad()
    def record(self, quantile: Tensor, losses: Tensor) -> None:
        """Take note of the losses [B] met at quantiles [B]; those that are not finite do not count."""
        finite = losses.isfinite()  # all are added, those that are not as zeros: to pick some, the host would wait
        k = (quantile * len(self.squares)).long()
        square = losses.where(finite, 0.0).double().square()
        self._seen = self._seen.to(square.device).index_add(1, k, torch.stack([square, finite.double()]))

    @torch.no_grad()
    def update(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """At the end of an optimizer step: each bin that was met gets the mean square of all ranks' losses there."""
        total, count = sum_over_ranks(self._seen)
        met = count > 0
        newest = torch.cat([(total / count.clamp(min=1)).unsqueeze(1), self.squares[:, :-1]], dim=1)
        self.squares.copy_(torch.where(met.unsqueeze(1), newest, self.squares))
        self.lengths.copy_((self.lengths + met).clamp(max=self.squares.shape[1]))
        self._seen = torch.zeros_like(self._seen)
