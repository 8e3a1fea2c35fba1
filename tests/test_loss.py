"""The errors a loss is made of: under the native weight they are errors of what the network predicts."""

import pytest
import torch

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.loss import absolute, diffusion_loss, pseudo_huber, squared, stratified_losses
from ldm.diffusion.noise import DiscreteNoise
from ldm.diffusion.precond import X0, Eps, V
from ldm.diffusion.schedule import scaled_linear
from ldm.diffusion.weighting import MinSNR, Native

SCHEDULE = scaled_linear(0.0015, 0.0195)


def targets(x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> dict:
    own = sigma[:, None, None, None]
    return {Eps: noise, X0: x0, V: (noise - own * x0) / (1 + own**2).sqrt()}


@pytest.mark.parametrize("precond", [Eps, X0, V])
def test_the_native_losses_are_those_of_what_the_network_predicts(precond):
    generator = torch.Generator().manual_seed(0)
    x0, noise, answer = (torch.randn(3, 4, 5, 5, generator=generator) for _ in range(3))
    sigma = torch.tensor([0.05, 1.0, 30.0])
    own = precond(SCHEDULE)
    error = answer - targets(x0, noise, sigma)[precond]
    for loss, expected in ((squared, error.square()), (absolute, error.abs())):
        found = diffusion_loss(Denoiser(lambda x, c_noise: answer, own), x0, sigma, noise, {}, Native(own), loss)
        torch.testing.assert_close(found, expected.flatten(1).mean(1), rtol=1e-4, atol=1e-5)


def test_squares_are_the_default_and_an_absolute_error_takes_the_root_of_the_weight():
    error, weight = torch.tensor([[2.0, -4.0], [1.0, 1.0]]), torch.tensor([4.0, 9.0])
    assert squared(error, weight).tolist() == [40.0, 9.0]
    assert absolute(error, weight).tolist() == [6.0, 3.0]
    denoiser = Denoiser(lambda x, c_noise: torch.ones_like(x), Eps(SCHEDULE))
    x0, numbers = torch.zeros(2, 1, 2, 2), torch.arange(2)
    given = (denoiser, x0, {}, DiscreteNoise(SCHEDULE), MinSNR(), 0, numbers, 3)
    assert torch.equal(stratified_losses(*given), stratified_losses(*given, squared))
    assert not torch.equal(stratified_losses(*given), stratified_losses(*given, absolute))


def test_the_pseudo_huber_loss_is_the_norm_of_large_errors_and_the_square_of_small_ones():
    error, weight = torch.tensor([[3.0, -4.0], [1.0, 1.0]], dtype=torch.float64), torch.tensor([4.0, 9.0])
    norm = weight.sqrt() * error.square().mean(1).sqrt()
    torch.testing.assert_close(pseudo_huber(error, weight, c=1e-9), norm, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        pseudo_huber(1e-3 * error, weight, c=1.0), 1e-6 * norm**2 / weight.sqrt() / 2, rtol=1e-4, atol=0
    )
    assert pseudo_huber(0 * error, weight).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match=r"loss\.c: must be positive"):
        pseudo_huber(error, weight, c=0.0)
