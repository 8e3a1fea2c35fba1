"""The denoiser: a network under a parametrisation, `(x, sigma, cond) -> x0`; all that samplers and losses ever see."""

from collections.abc import Callable

from torch import Tensor, nn

from ldm.diffusion.cond import Condition
from ldm.diffusion.precond import Precond

# A denoiser with its condition bound, `(x [B, ...], sigma [B]) -> x0`: what samplers and guidance work on.
Denoise = Callable[[Tensor, Tensor], Tensor]
# With the condition yet to be given, `(x, sigma [B], cond) -> x0`: what `Denoiser` is.
ConditionalDenoise = Callable[[Tensor, Tensor, Condition], Tensor]


def expand(value: Tensor, x: Tensor) -> Tensor:
    """A value per sample [B] as [B, 1, ...], to meet x [B, ...]."""
    return value.reshape(-1, *[1] * (x.ndim - 1))


class Denoiser(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x, c_noise) (EDM, equation 7); fp32 in and out, also under autocast."""

    def __init__(self, network: Callable[..., Tensor], precond: Precond):
        super().__init__()
        self.network = network
        self.precond = precond

    @property
    def factor(self) -> int:
        """Height and width of x must be multiples of it."""
        return self.network.factor

    def forward(self, x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        """x [B, ...] = x0 + sigma noise, sigma [B] > 0, cond: the network's keywords -> estimate of x0 [B, ...]."""
        x, sigma = x.float(), sigma.float()
        c_skip, c_out, c_in, c_noise = self.precond(sigma)
        output = self.network(expand(c_in, x) * x, c_noise, **cond).float()
        return expand(c_skip, x) * x + expand(c_out, x) * output
