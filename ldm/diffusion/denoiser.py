"""The denoiser: a network under a parametrisation, `(x, sigma, cond) -> x0`; all that samplers and losses ever see."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ldm.diffusion.cond import Condition
from ldm.diffusion.precond import Precond
from ldm.errors import UserError

# A denoiser with its condition bound, `(x [B, ...], sigma [B]) -> x0`: what samplers and guidance work on.
Denoise = Callable[[Tensor, Tensor], Tensor]
# With the condition yet to be given, `(x, sigma [B], cond) -> x0`: what `Denoiser` is.
ConditionalDenoise = Callable[[Tensor, Tensor, Condition], Tensor]


def expand(value: Tensor, x: Tensor) -> Tensor:
    """A value per sample [B] as [B, 1, ...], to meet x [B, ...]."""
    return value.reshape(-1, *[1] * (x.ndim - 1))


class Denoiser(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x, c_noise) (EDM, equation 7); fp32 in and out, also under autocast.

    The network is evaluated under autocast to `low`, where that is a type.
    """

    low: torch.dtype | None = None

    def __init__(self, network: Callable[..., Tensor], precond: Precond):
        super().__init__()
        self.network = network
        self.precond = precond

    @property
    def factor(self) -> int:
        """Height and width of x must be multiples of it."""
        return self.network.factor  # type: ignore[attr-defined]  # of a network, by its contract

    def forward(self, x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        """x [B, C, ...] = x0 + sigma noise, sigma [B] > 0, cond: the network's keywords -> estimate of x0, like x."""
        return self.with_variance(x, sigma, cond)[0]

    def with_variance(self, x: Tensor, sigma: Tensor, cond: Condition) -> tuple[Tensor, Tensor | None]:
        """The estimate of x0, and v like x of a network of 2 C output channels, as those of ADM and DiT; else None.

        v, about in [-1, 1], places the log-variance of a step between its bounds (arXiv:2102.09672, equation 15). The
        losses here do not train it. Raises UserError for a network whose output is of another shape.
        """
        x, sigma = x.float(), sigma.float()
        c_skip, c_out, c_in, c_noise = self.precond(sigma)
        with torch.autocast(x.device.type, self.low) if self.low else nullcontext():
            output = self.network(expand(c_in, x) * x, c_noise, **cond).float()
        channels = x.shape[1]
        if output.ndim != x.ndim or (output.shape[0], *output.shape[2:]) != (x.shape[0], *x.shape[2:]):
            raise UserError(
                f"network {type(self.network).__name__}: gives {tuple(output.shape)} for {tuple(x.shape)}; it must be "
                "of the same batch, height and width"
            )
        if output.shape[1] not in (channels, 2 * channels):
            raise UserError(
                f"network.out_channels={output.shape[1]}: must be {channels}, as the latents have, or {2 * channels} "
                "with a variance beside them"
            )
        output, variance = (output, None) if output.shape[1] == channels else output.chunk(2, dim=1)
        return expand(c_skip, x) * x + expand(c_out, x) * output, variance
