"""Processes: sigma(t) and t(sigma) are inverse and monotone, steps are exact, and the published schedules are met."""

import math

import pytest
import torch

from ldm.diffusion.precond import Eps
from ldm.diffusion.schedule import MAX_SIGMA, VE, Discrete, Flow, cosine, given, linear, scaled_linear, sqrt

STABLE_DIFFUSION = scaled_linear(0.00085, 0.012)
SCHEDULES = {
    "scaled_linear": STABLE_DIFFUSION,
    "linear": linear(),
    "cosine": cosine(),
    "sqrt": sqrt(1e-8, 1.8e-4),
    "zero_snr": scaled_linear(0.00085, 0.012, zero_terminal_snr=True),
    "ve": VE(),
    "flow": Flow(),
}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
each_discrete = pytest.mark.parametrize(
    "schedule",
    [s for s in SCHEDULES.values() if type(s) is Discrete],
    ids=["scaled_linear", "linear", "cosine", "sqrt", "zero"],
)


@each_schedule
def test_sigma_and_t_are_inverse_and_monotone(schedule):
    t = torch.linspace(0, 0.9998, 4001, dtype=torch.float64)
    sigma = schedule.sigma(t)
    assert sigma.dtype == torch.float64
    assert (sigma.diff() > 0).all()
    torch.testing.assert_close(schedule.t(sigma), t, rtol=0, atol=1e-12)
    torch.testing.assert_close(schedule.sigma(schedule.t(sigma)), sigma, rtol=1e-11, atol=0)
    assert schedule.sigma(torch.ones(1)).isfinite().all()


@each_discrete
def test_steps_and_sigmas_correspond_exactly_also_in_float32(schedule):
    steps = torch.arange(1000)
    assert torch.equal(schedule.timestep(schedule.sigmas), steps.double())
    assert torch.equal(schedule.c_noise(schedule.sigmas.float()), steps.float())
    sigma = schedule.sigma(steps.double() / 999)
    assert torch.equal(sigma[[0, -1]], schedule.sigmas[[0, -1]])
    torch.testing.assert_close(sigma, schedule.sigmas, rtol=1e-14, atol=0)
    assert torch.equal(schedule.t(schedule.sigmas), steps.double() / 999)
    assert torch.equal(schedule.chain(), schedule.sigmas)


@each_discrete
def test_a_chain_is_that_of_its_betas_to_the_last_digits_and_met_in_float32(schedule):
    levels = schedule.sigmas
    for near in (levels.float(), levels * (1 - 2.0**-24), levels * (1 + 2.0**-24)):
        assert torch.equal(schedule.timestep(near), torch.arange(1000.0, dtype=torch.float64))
        assert schedule.t(near[[0, -1]]).tolist() == [0, 1]
    assert not torch.equal(levels.float().double(), levels)
    away = levels[:-1] * (1 + 1e-6)
    assert bool((schedule.timestep(away) > torch.arange(999)).all())


def test_betas_come_back_from_the_sigmas():
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = 1 / (1 + scaled_linear(0.0015, 0.0195).sigmas ** 2)
    found = 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    torch.testing.assert_close(found, betas, rtol=1e-11, atol=0)


def test_a_cosine_chain_is_no_pure_noise_and_eps_prediction_takes_it():
    schedule = SCHEDULES["cosine"]
    assert schedule.sigmas[-1].item() == pytest.approx(2.03e4, rel=0.01) and not schedule.is_pure_noise
    sigma = schedule.sigmas[[0, 500, 999]].float()
    _, c_out, _, c_noise = Eps(schedule)(sigma)
    assert c_noise.tolist() == [0, 500, 999] and torch.equal(c_out, -sigma)
    with pytest.raises(ValueError, match="pure noise"):
        Eps(SCHEDULES["zero_snr"])
    assert not cosine(10_000).is_pure_noise


def test_timesteps_interpolate_in_log_sigma_and_stop_at_the_ends():
    schedule = STABLE_DIFFUSION
    middle = (schedule.sigmas[41] * schedule.sigmas[42]).sqrt()
    assert schedule.timestep(middle).item() == pytest.approx(41.5, abs=1e-9)
    assert schedule.timestep(torch.tensor([0.0, 1e-9, 1e9])).tolist() == [0.0, 0.0, 999.0]


def test_published_tables():
    assert STABLE_DIFFUSION.sigmas[0].item() == pytest.approx(0.0292, abs=5e-5)
    assert STABLE_DIFFUSION.sigmas[-1].item() == pytest.approx(14.615, abs=5e-4)
    alpha_bar = {beta_end: 1 / (1 + scaled_linear(0.0015, beta_end).sigmas[-1] ** 2) for beta_end in (0.0195, 0.0155)}
    assert alpha_bar[0.0195].item() == pytest.approx(1.42e-4, rel=0.005)
    assert alpha_bar[0.0155].item() == pytest.approx(6.7e-4, rel=0.005)


@pytest.mark.parametrize(
    ("ours", "options"),
    [
        (STABLE_DIFFUSION, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        (linear(), {"beta_schedule": "linear"}),
        (cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
        (
            scaled_linear(0.00085, 0.012, zero_terminal_snr=True),
            {
                "beta_schedule": "scaled_linear",
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "rescale_betas_zero_snr": True,
            },
        ),
    ],
)
def test_schedules_equal_those_of_diffusers(ours, options):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(num_train_timesteps=1000, **options).alphas_cumprod.double()
    torch.testing.assert_close(1 / (1 + ours.sigmas**2), theirs, rtol=2e-4, atol=2e-8)


def test_betas_are_those_of_the_variant():
    """Each against the product it stands for, alpha_bar_t = (1 - beta_1) ... (1 - beta_t), step by step."""
    line = [0.01 + (0.16 - 0.01) * k / 4 for k in range(5)]
    variants = {
        linear(0.01, 0.16, 5): line,
        scaled_linear(0.01, 0.16, 5): [(0.1 + 0.3 * k / 4) ** 2 for k in range(5)],
        sqrt(0.01, 0.16, 5): [value**0.5 for value in line],
        given([0.3, 0.1, 0.2]): [0.3, 0.1, 0.2],
    }
    for schedule, betas in variants.items():
        kept = [math.prod(1 - beta for beta in betas[: k + 1]) for k in range(len(betas))]
        snr = torch.tensor([alpha_bar / (1 - alpha_bar) for alpha_bar in kept], dtype=torch.float64)
        torch.testing.assert_close(1 / schedule.sigmas**2, snr, rtol=1e-6, atol=0)
        assert schedule.num_timesteps == len(betas)
    given_chain = given([1e-4 + (0.02 - 1e-4) * k / 999 for k in range(1000)])
    torch.testing.assert_close(given_chain.sigmas, linear().sigmas, rtol=1e-6, atol=0)


def test_infinite_noise_becomes_a_large_finite_sigma():
    assert SCHEDULES["zero_snr"].sigmas[-1] == MAX_SIGMA and SCHEDULES["zero_snr"].is_pure_noise
    assert Flow().sigma(torch.ones(1)) == MAX_SIGMA and Flow().is_pure_noise
    assert not STABLE_DIFFUSION.is_pure_noise


def test_c_noise_of_the_continuous_processes():
    sigma = torch.tensor([0.5, 2.0])
    torch.testing.assert_close(VE(c_noise_scale=0.25).c_noise(sigma), sigma.log() / 4)
    torch.testing.assert_close(Flow().c_noise(sigma), 1000 * torch.tensor([1 / 3, 2 / 3]))


@each_schedule
def test_outside_the_span_is_an_error(schedule):
    for t in (-0.01, 1.01, float("nan")):
        with pytest.raises(ValueError, match="t: schedule time"):
            schedule.sigma(torch.tensor([t]))
    with pytest.raises(ValueError, match="sigma: this schedule spans"):
        schedule.t(torch.tensor([100 * MAX_SIGMA]))


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match="beta_start"):
        scaled_linear(0.0, 0.012)
    with pytest.raises(ValueError, match="betas"):
        given([0.1, 1.0])
    with pytest.raises(ValueError, match="betas"):
        given([0.1, float("nan")])
    with pytest.raises(ValueError, match="strictly increases"):
        given([0.1])
    with pytest.raises(ValueError, match="strictly increases"):
        sqrt(1e-4, 0.02)  # the public code's defaults: pure noise from a third of the chain on
    for continuous in (VE(), Flow()):
        with pytest.raises(ValueError, match=r"has no steps; sigmas=ddim, .*schedule=scaled_linear"):
            continuous.chain()
    with pytest.raises(ValueError, match="sigma_min"):
        VE(sigma_min=1.0, sigma_max=0.5)
    with pytest.raises(ValueError, match="strictly increases"):
        Discrete(torch.tensor([0.9, 0.9]))
