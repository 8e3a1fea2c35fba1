"""Weights on the x0 error: the published losses in one unit."""

import math

import pytest
import torch

from ldm.build import Parts
from ldm.config import compose
from ldm.diffusion import weighting
from ldm.diffusion.experts import Expert
from ldm.diffusion.noise import DiscreteNoise, LogNormal, LogUniform, SamplerMatched
from ldm.diffusion.precond import EDM, X0, Eps, Flow, V
from ldm.diffusion.schedule import VE, scaled_linear
from ldm.diffusion.schedule import Flow as FlowSchedule

SIGMA = torch.logspace(-2.5, 2, 50, dtype=torch.float64)
PRECONDS = [Eps(VE()), V(VE()), X0(VE()), Flow(FlowSchedule()), EDM(VE(), sigma_data=0.5)]


@pytest.mark.parametrize("precond", PRECONDS, ids=lambda precond: type(precond).__name__)
def test_native_weight_is_one_over_c_out_squared(precond):
    c_out = precond(SIGMA)[1]
    torch.testing.assert_close(weighting.Native(precond)(SIGMA) * c_out**2, torch.ones_like(SIGMA))


def test_edm_weight_is_native_to_edm():
    torch.testing.assert_close(weighting.EDMWeighting(0.5)(SIGMA), weighting.Native(EDM(VE(), sigma_data=0.5))(SIGMA))


def test_min_snr_is_the_published_weight_for_each_parametrisation():
    snr = 1 / SIGMA**2
    weight = weighting.MinSNR(gamma=5.0)(SIGMA)
    capped = snr.clamp(max=5.0)
    torch.testing.assert_close(weight / weighting.Native(Eps(VE()))(SIGMA), capped / snr)
    torch.testing.assert_close(weight / weighting.Native(V(VE()))(SIGMA), capped / (snr + 1))
    torch.testing.assert_close(weight / weighting.Native(X0(VE()))(SIGMA), capped)


def test_soft_min_snr_follows_the_smaller_of_the_two():
    weight, snr = weighting.SoftMinSNR(gamma=5.0)(SIGMA), 1 / SIGMA**2
    torch.testing.assert_close(1 / weight, 1 / snr + 1 / 5)


@pytest.mark.parametrize("noise", [LogNormal(-0.5, 1.2), LogNormal(0.5, 1.5), LogUniform(0.01, 100.0)])
def test_the_variational_bound_does_not_depend_on_the_noise_trained_on(noise):
    generator = torch.Generator().manual_seed(0)
    sigma = noise.icdf(torch.rand(200_000, generator=generator, dtype=torch.float64))
    inside = (sigma > 0.1) & (sigma < 3.0)
    error = 1 / (1 + 1 / sigma**2)  # of the best denoiser of N(0, 1)
    bound = (weighting.ELBO(noise)(sigma) * error * inside).mean()
    exact = 0.5 * (math.log(1 + 1 / 0.1**2) - math.log(1 + 1 / 3.0**2))  # integral of 1 / (1 + sigma^2) d ln(sigma)
    assert bound.item() == pytest.approx(exact, rel=0.02)


def test_the_bound_is_that_of_what_an_expert_draws_from():
    parent, within = LogNormal(-0.507, 1.2), LogUniform(0.002, 80.0)
    expert = Expert(node=(1, 1), within=within)
    assert torch.equal(weighting.ELBO(parent, expert)(SIGMA), weighting.ELBO(within)(SIGMA))
    assert torch.equal(weighting.ELBO(parent, Expert(node=(1, 1)))(SIGMA), weighting.ELBO(parent)(SIGMA))
    tree = {
        "noise": {"_target_": "ldm.diffusion.noise.LogNormal", "mean": -0.507, "std": 1.2},
        "weighting": {"_target_": "ldm.diffusion.weighting.ELBO"},
        "expert": compose("config", ["expert=log_uniform", "expert.node=[1,1]"], complete=False)["expert"],
    }
    assert torch.equal(Parts(tree)["weighting"](SIGMA), weighting.ELBO(within)(SIGMA))


@pytest.mark.parametrize("schedule", [scaled_linear(0.0015, 0.0195), scaled_linear(0.00085, 0.012)])
def test_the_bound_over_the_steps_of_a_chain_is_ddpms(schedule):
    # Between two steps the continuous weight is the discrete one of the step, up to the step's length in ln(sigma).
    alpha_bar = 1 / (1 + schedule.sigmas**2)
    alpha = alpha_bar[1:] / alpha_bar[:-1]
    beta = 1 - alpha
    variance = beta * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])  # of the posterior q(x_{t-1} | x_t, x0)
    of_noise = beta**2 / (2 * variance * alpha * (1 - alpha_bar[1:]))  # arXiv:2006.11239, equation 12
    snr = 1 / schedule.sigmas**2
    of_x0 = (snr[:-1] - snr[1:]) / 2  # arXiv:2107.00630, equation 13
    torch.testing.assert_close(of_noise * snr[1:], of_x0, rtol=1e-9, atol=0)
    own = weighting.ELBO(DiscreteNoise(schedule))(schedule.sigmas.float()).double() / len(schedule.sigmas)
    torch.testing.assert_close(own[1:], of_x0, rtol=1e-5, atol=0)
    assert own[0].item() == pytest.approx((of_noise[0] * snr[0]).item(), rel=1e-5)  # as published

    middle = (schedule.sigmas[1:] * schedule.sigmas[:-1]).sqrt()
    per_step = weighting.ELBO(SamplerMatched(schedule.sigmas.flip(0)))(middle) / len(beta)
    length = (schedule.sigmas[1:] / schedule.sigmas[:-1]).log()
    inner = slice(20, -20)  # the density there is not cut by the ends of the schedule
    torch.testing.assert_close(per_step[inner], of_x0[inner], rtol=1e-3, atol=0)
    native = per_step / weighting.Native(Eps(schedule))(middle)
    assert ((native / of_noise - 1).abs() < 1.01 * length + 1e-3)[inner].all()


def test_unit_weight():
    assert torch.equal(weighting.Unit()(SIGMA), torch.ones_like(SIGMA))


@pytest.mark.parametrize(
    ("make", "key"),
    [(weighting.EDMWeighting, "sigma_data"), (weighting.MinSNR, "gamma"), (weighting.SoftMinSNR, "gamma")],
)
def test_non_positive_constants_are_refused(make, key):
    with pytest.raises(ValueError, match=key):
        make(0.0)
