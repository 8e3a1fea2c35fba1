"""Per-channel mean and standard deviation of latents, streamed in float64 and merged across processes.

Chan's parallel update (Chan, Golub, LeVeque 1979): exact up to rounding whatever the order and the sizes of batches.
"""

from typing import Any, Self

import torch
from torch import Tensor

from ldm.errors import UserError


class LatentStatistics:
    """Count, mean and sum of squared deviations of each channel of what `update` was given."""

    def __init__(self, channels: int):
        self.count = 0
        self._mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)

    def update(self, z: Tensor) -> None:
        """Add z [B, C, ...]. Raises ValueError for values that are not finite."""
        values = z.detach().double().transpose(0, 1).flatten(1).cpu()  # [C, values]
        if values.shape[0] != len(self._mean):
            raise UserError(f"latent has {values.shape[0]} channels, the statistics are for {len(self._mean)}")
        if not values.isfinite().all():
            raise UserError("latent: a value is not finite, so there are no statistics of it")
        if values.shape[1]:
            mean = values.mean(1)
            self._add(values.shape[1], mean, (values - mean[:, None]).square().sum(1))

    def merge(self, other: Self) -> None:
        """Add what `other` has seen, as if it had been seen here."""
        self._add(other.count, other._mean, other._squares)

    def _add(self, count: int, mean: Tensor, squares: Tensor) -> None:
        total = self.count + count
        if total:
            delta = mean - self._mean
            self._squares = self._squares + squares + delta.square() * (self.count * count / total)
            self._mean = self._mean + delta * (count / total)
            self.count = total

    @property
    def mean(self) -> Tensor:
        """Mean [C], float64."""
        return self._mean.clone()

    @property
    def std(self) -> Tensor:
        """Standard deviation [C] of the values seen (divided by their number), float64."""
        if not self.count:
            raise UserError("latent statistics: nothing was seen")
        return (self._squares / self.count).sqrt()

    def summary(self, single_factor: bool = False, whiten: bool = True) -> dict[str, Any]:
        """What goes beside a first stage's weights: "mean" and "std", lists of C numbers, and "count".

        `single_factor`: means of 0 and one std over all channels, whose inverse is the published `scale_factor`.
        `whiten` false: means of 0 and std of 1, which leave latents as they are.
        """
        mean, std = self.mean, self.std
        if single_factor:
            spread = std.square().mean() + (mean - mean.mean()).square().mean()
            mean, std = torch.zeros_like(mean), spread.sqrt().expand_as(std)
        if not whiten:
            mean, std = torch.zeros_like(mean), torch.ones_like(std)
        return {"mean": mean.tolist(), "std": std.tolist(), "count": self.count}

    def to_tensor(self) -> Tensor:
        """The state as [3, C] float64, to be gathered from other processes; `from_tensor` is the inverse."""
        return torch.stack([torch.full_like(self._mean, self.count), self._mean, self._squares])

    @classmethod
    def from_tensor(cls, state: Tensor) -> Self:
        """Statistics from the state of another process."""
        statistics = cls(state.shape[1])
        state = state.double().cpu()
        statistics.count = int(state[0, 0])
        statistics._mean, statistics._squares = state[1].clone(), state[2].clone()
        return statistics
