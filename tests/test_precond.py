"""Parametrisations and the denoiser: an oracle network gives x0 under each, at every noise level."""

import pytest
import torch
from torch import nn

from ldm.diffusion.denoiser import Denoiser, expand
from ldm.diffusion.loss import diffusion_loss
from ldm.diffusion.precond import EDM, X0, Eps, Flow, Regression, V
from ldm.diffusion.samplers import euler
from ldm.diffusion.schedule import VE, scaled_linear
from ldm.diffusion.schedule import Flow as FlowSchedule
from ldm.diffusion.weighting import Native

SCHEDULE = scaled_linear(0.00085, 0.012)
TARGETS = {
    "eps": (Eps(SCHEDULE), lambda x0, noise, sigma: noise),
    "v": (V(SCHEDULE), lambda x0, noise, sigma: (noise - sigma * x0) / (1 + sigma**2).sqrt()),
    "x0": (X0(SCHEDULE), lambda x0, noise, sigma: x0),
    "flow": (Flow(FlowSchedule()), lambda x0, noise, sigma: noise - x0),
    "edm": (
        EDM(VE(), sigma_data=0.5),
        lambda x0, noise, sigma: (sigma * x0 - 0.25 * noise) / (0.5 * (sigma**2 + 0.25).sqrt()),
    ),
}
each_precond = pytest.mark.parametrize(("precond", "target"), TARGETS.values(), ids=TARGETS.keys())


def draw(batch=6):
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(batch, 3, 4, 4, generator=generator) for _ in range(2))
    return x0, noise, torch.logspace(-2, 1.1, batch)


@each_precond
def test_an_oracle_network_gives_x0(precond, target):
    x0, noise, sigma = draw()
    denoiser = Denoiser(lambda x, c_noise: target(x0, noise, expand(sigma, x0)), precond)
    torch.testing.assert_close(denoiser(x0 + expand(sigma, x0) * noise, sigma, {}), x0, rtol=1e-4, atol=1e-5)


@each_precond
def test_the_native_loss_is_the_mse_of_the_network(precond, target):
    x0, noise, sigma = draw()
    error = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    denoiser = Denoiser(lambda x, c_noise: target(x0, noise, expand(sigma, x0)) + error, precond)
    loss = diffusion_loss(denoiser, x0, sigma, noise, {}, Native(precond))
    assert loss.shape == (6,) and loss.dtype == torch.float32
    torch.testing.assert_close(loss, error.square().mean((1, 2, 3)), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["eps", "v", "flow", "edm"])
def test_without_noise_the_denoiser_is_the_identity(name):
    x0, noise, _ = draw()
    denoiser = Denoiser(lambda x, c_noise: noise, TARGETS[name][0])
    torch.testing.assert_close(denoiser(x0, torch.full((6,), 1e-7), {}), x0, rtol=1e-5, atol=1e-6)


@each_precond
def test_the_network_sees_unit_variance(precond, target):
    generator = torch.Generator().manual_seed(0)
    scale = 0.5 if type(precond) is EDM else 1.0
    x0, noise = scale * torch.randn(5, 40_000, generator=generator), torch.randn(5, 40_000, generator=generator)
    sigma = torch.logspace(-2, 1, 5)
    c_in = precond(sigma)[2]
    std = (c_in[:, None] * (x0 + sigma[:, None] * noise)).std(1)
    if type(precond) is Flow:  # the straight path dips to sqrt(1/2) in its middle
        assert ((std > 0.7) & (std < 1.01)).all()
    else:
        torch.testing.assert_close(std, torch.ones(5), rtol=0.02, atol=0)


def test_the_denoiser_is_float32_under_autocast_and_passes_the_condition():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, x, c_noise, *, vector):
            self.seen = (x.dtype, c_noise.dtype, vector)
            return self.layer(x)

    network, vector = Network(), torch.ones(2, 4)
    denoiser = Denoiser(network, V(SCHEDULE))
    with torch.autocast("cpu", torch.bfloat16):
        assert network.layer(torch.zeros(2, 3, 4, 4)).dtype == torch.bfloat16
        x0 = denoiser(torch.randn(2, 3, 4, 4), torch.tensor([0.5, 1.0], dtype=torch.float64), {"vector": vector})
    assert x0.dtype == torch.float32
    assert network.seen == (torch.float32, torch.float32, vector)


def test_sequences_and_vectors_work_as_grids_do():
    for shape in [(4, 7), (4, 5, 7), (4, 2, 3, 4, 5)]:
        x = torch.randn(shape)
        assert Denoiser(lambda x, c_noise: x, V(SCHEDULE))(x, torch.ones(4), {}).shape == shape


def test_a_network_may_give_a_variance_beside_x0():
    x, sigma, v = torch.randn(4, 3, 5, 7), torch.ones(4), torch.randn(4, 3, 5, 7)
    alone = Denoiser(lambda x, c_noise: x, V(SCHEDULE))
    both = Denoiser(lambda x, c_noise: torch.cat([x, v], 1), V(SCHEDULE))
    x0, variance = both.with_variance(x, sigma, {})
    assert torch.equal(variance, v) and torch.equal(x0, alone(x, sigma, {})) and torch.equal(both(x, sigma, {}), x0)
    assert alone.with_variance(x, sigma, {})[1] is None
    with pytest.raises(ValueError, match=r"network\.out_channels=1: must be 3, as the latents have, or 6"):
        Denoiser(lambda x, c_noise: x[:, :1], V(SCHEDULE))(x, sigma, {})
    for cut, shape in ((lambda x: x[..., :-2], r"\(4, 3, 5, 5\)"), (lambda x: x[0], r"\(3, 5, 7\)")):
        with pytest.raises(ValueError, match=rf"network function: gives {shape} for \(4, 3, 5, 7\)"):
            Denoiser(lambda x, c_noise, cut=cut: cut(x), V(SCHEDULE))(x, sigma, {})


def test_eps_refuses_pure_noise():
    for schedule in (FlowSchedule(), scaled_linear(0.00085, 0.012, zero_terminal_snr=True)):
        with pytest.raises(ValueError, match="precond"):
            Eps(schedule)
        assert all(c.isfinite().all() for c in V(schedule)(torch.tensor([1e4])))


def test_a_bad_sigma_data_is_refused():
    with pytest.raises(ValueError, match="sigma_data"):
        EDM(VE(), sigma_data=0.0)


def test_a_regression_sees_neither_noise_nor_its_level_and_is_drawn_in_one_step():
    x0, noise, sigma = draw()
    seen = []

    def network(x, c_noise):
        seen.append((x, c_noise))
        return x0

    denoiser = Denoiser(network, Regression())
    for x in (noise, 3 * noise):
        torch.testing.assert_close(euler(lambda x, sigma: denoiser(x, sigma, {}), x, torch.tensor([1.0, 0.0])), x0)
    assert all(not x.any() and not c_noise.any() for x, c_noise in seen)
    loss = diffusion_loss(denoiser, x0, sigma, noise, {}, Native(Regression()))
    assert torch.equal(loss, torch.zeros(6))
