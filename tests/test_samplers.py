"""Samplers: orders of convergence on a known Gaussian, the ends of a sigma schedule, and parity with diffusers."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import yaml

from ldm.config import CONF, groups, instantiate
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.precond import Eps, Flow
from ldm.diffusion.repaint import repaint
from ldm.diffusion.samplers import (
    consistency,
    ddim,
    ddpm,
    deis,
    dpmpp_2m,
    dpmpp_2s,
    dpmpp_sde,
    euler,
    euler_ancestral,
    heun,
    plms,
)
from ldm.diffusion.schedule import Flow as FlowSchedule
from ldm.diffusion.schedule import scaled_linear
from ldm.diffusion.sigmas import ddim_sigmas, exponential, flow, init_noise, karras, trailing

MEAN, STD = 0.3, 0.7


def gaussian(x, sigma):
    """E[x0 | x] for x0 ~ N(MEAN, STD^2)."""
    sigma = sigma[:, None]
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def consistent(x, sigma):
    """Where the path of the ODE through x at sigma ends, for the same data."""
    return MEAN + (x - MEAN) * STD / (STD**2 + sigma[:, None] ** 2).sqrt()


class Row(NamedTuple):
    """What is known of a sampler: its order of convergence between positive sigmas (None for one that has no single
    order), its evaluations of ten steps that end in 0, whether it draws noise, and what it asks of
    this Gaussian.
    """

    order: int | None
    evaluations: int
    draws: bool = False
    of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = gaussian


# A row for each option of conf/sampler, and more for other keys of one.
TABLE = {
    "consistency": Row(None, 10, draws=True, of=consistent),
    "ddim": Row(1, 10),
    "ddim eta=0.5": Row(None, 10, draws=True),
    "ddpm": Row(None, 10, draws=True),
    "deis": Row(None, 10),  # whose first steps limit it, see below
    "deis order=1": Row(1, 10),
    "deis order=2": Row(2, 10),
    "dpmpp_2m": Row(2, 10),
    "dpmpp_2s": Row(2, 19),
    "dpmpp_sde": Row(None, 19, draws=True),
    "dpmpp_sde eta=0.0": Row(2, 19),
    "euler": Row(1, 10),
    "euler_ancestral": Row(None, 10, draws=True),
    "heun": Row(2, 19),
    "kutta3": Row(3, 28),
    "plms": Row(2, 11),
    "repaint num_resamples=3": Row(None, 28, draws=True),
    "repaint num_resamples=2 jump_length=4": Row(None, 18, draws=True),
}
every_sampler = pytest.mark.parametrize("name", TABLE)


def sampler_of(name):
    """The sampler of a row of the table, as its YAML makes it."""
    option, *keys = name.split()
    node = yaml.safe_load((CONF / "sampler" / f"{option}.yaml").read_text())
    return instantiate(
        node | {key: yaml.safe_load(value) for key, value in (k.split("=") for k in keys)}, {}, "sampler"
    )


def test_every_sampler_has_a_row_and_every_row_a_sampler():
    options, rows = set(groups()["sampler"]), {name.split()[0] for name in TABLE}
    assert not options - rows, (
        f"conf/sampler has {', '.join(sorted(options - rows))}, and TABLE in tests/test_samplers.py has no row for it: "
        "add its order of convergence, its evaluations of ten steps into 0, and whether it draws noise"
    )
    assert not rows - options, (
        f"TABLE has rows for {', '.join(sorted(rows - options))}, which conf/sampler does not have"
    )


def normals(seed, shape=(20_000, 1)):
    generator = torch.Generator().manual_seed(seed)
    return lambda step: torch.randn(shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.order is not None])
@pytest.mark.parametrize("ladder", [exponential, karras])
def test_order_of_convergence_between_positive_sigmas(name, ladder):
    sampler, order = sampler_of(name), TABLE[name].order
    x = torch.linspace(-20, 20, 9, dtype=torch.float64)[:, None]
    exact = MEAN + (x - MEAN) * math.sqrt((STD**2 + 0.05**2) / (STD**2 + 10.0**2))
    errors = [
        (sampler(gaussian, x, ladder(num_steps, 0.05, 10.0)[:-1]) - exact).abs().max().item() for num_steps in (81, 161)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)
    assert errors[1] < 0.1


@pytest.mark.parametrize("ladder", [exponential, karras])
def test_each_order_of_deis_is_more_accurate_though_its_first_steps_limit_it(ladder):
    x = torch.linspace(-20, 20, 9, dtype=torch.float64)[:, None]
    exact = MEAN + (x - MEAN) * math.sqrt((STD**2 + 0.05**2) / (STD**2 + 10.0**2))
    errors = [
        (deis(gaussian, x, ladder(21, 0.05, 10.0)[:-1], order=order) - exact).abs().max().item() for order in (1, 2, 3)
    ]
    assert errors[0] > 3 * errors[1] > 4 * errors[2]


@every_sampler
@pytest.mark.parametrize("ladder", [karras(30, 0.002, 80.0), exponential(7, 0.01, 5.0)[:-1], torch.tensor([3.0, 0.0])])
def test_any_decreasing_schedule_is_accepted(name, ladder):
    x = 10 * normals(0, (5, 2))(0)
    before = x.clone()
    result = sampler_of(name)(gaussian, x, ladder, noise=normals(1, (5, 2)))
    assert result.shape == x.shape and result.isfinite().all()
    assert torch.equal(x, before)


@every_sampler
def test_a_certain_denoiser_is_met_exactly_at_zero(name):
    x0 = normals(0, (5, 2))(0)
    x, noise = 80 * normals(1, (5, 2))(0), normals(2, (5, 2))
    result = sampler_of(name)(lambda x, sigma: x0, x, karras(12, 0.002, 80.0), noise=noise)
    assert torch.equal(result, x0)


def test_jumps_of_no_repeats_are_ddpm_and_more_go_over_the_same_levels_again():
    x, ladder = normals(0, (5, 2))(0), torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0])
    plain = ddpm(gaussian, x, ladder, noise=normals(1, (5, 2)))
    for length in (1, 3, 9):
        once = repaint(gaussian, x, ladder, noise=normals(1, (5, 2)), num_resamples=1, jump_length=length)
        torch.testing.assert_close(once, plain)
    seen = []

    def denoise(x, sigma):
        seen.append(sigma[0].item())
        return gaussian(x, sigma)

    repaint(denoise, x, ladder, noise=normals(1, (5, 2)), num_resamples=2, jump_length=2)
    assert seen == [8, 4, 8, 4, 2, 1]


@every_sampler
def test_samples_have_the_data_distribution(name):
    x = 80 * normals(0)(0)
    result = sampler_of(name)(TABLE[name].of, x, karras(200, 0.002, 80.0), noise=normals(1))
    assert result.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert result.std().item() == pytest.approx(STD, abs=0.03)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4])
def test_a_consistency_function_draws_the_data_in_any_number_of_steps(num_steps):
    x, ladder = 80 * normals(0)(0) + MEAN, exponential(num_steps, 1.5, 80.0)
    result = consistency(consistent, x, ladder, noise=normals(1))
    assert result.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert result.std().item() == pytest.approx(STD, abs=0.02)
    if num_steps == 1:
        assert torch.equal(result, consistent(x, x.new_full((len(x),), 80.0))), "without noise"
        assert torch.equal(result, consistency(consistent, x, ladder))
    shrunk = consistency(gaussian, x, ladder, noise=normals(1))  # a denoiser's estimates are of too little variance
    assert shrunk.std().item() < 0.9 * STD


@every_sampler
def test_number_of_evaluations(name):
    sigmas_seen = []

    def denoise(x, sigma):
        sigmas_seen.append(sigma)
        return gaussian(x, sigma)

    sampler_of(name)(denoise, normals(0, (3, 1))(0), karras(10, 0.002, 80.0), noise=normals(1, (3, 1)))
    assert len(sigmas_seen) == TABLE[name].evaluations
    assert all(sigma.shape == (3,) and (sigma > 0).all() for sigma in sigmas_seen)


@pytest.mark.parametrize("num_steps", [1, 7, 24, 334, 400, 600, 999])
def test_ddim_takes_the_steps_asked_for_and_none_outside_the_chain(num_steps):
    """The public code runs 500 steps for 400, and reads past its table for 600 others of 1000 numbers."""
    schedule, seen = scaled_linear(0.0015, 0.0195), []

    def denoise(x, sigma):
        seen.append(sigma[0].double())
        return gaussian(x, sigma)

    ddim(denoise, normals(0, (1, 1))(0), ddim_sigmas(num_steps, schedule), noise=normals(1, (1, 1)), eta=1.0)
    assert len(seen) == num_steps
    assert torch.isin(torch.stack(seen).float(), schedule.sigmas.float()).all()


def test_ddim_without_noise_is_euler():
    x = 80 * normals(0, (5, 2))(0)
    assert torch.equal(ddim(gaussian, x, karras(20, 0.002, 80.0)), euler(gaussian, x, karras(20, 0.002, 80.0)))


@every_sampler
@pytest.mark.parametrize("ladder", [[1.0], [1.0, 2.0], [1.0, 1.0, 0.0], [1.0, -0.1], [math.inf, 1.0], [math.nan, 0.0]])
def test_a_bad_schedule_is_refused(name, ladder):
    with pytest.raises(ValueError, match="sigmas"):
        sampler_of(name)(gaussian, torch.zeros(2, 1), torch.tensor(ladder), noise=normals(0, (2, 1)))


@every_sampler
def test_what_draws_noise_needs_it_and_nothing_else_does(name):
    sampler, x, ladder, drawn = sampler_of(name), normals(0, (2, 1))(0), torch.tensor([2.0, 1.0, 0.0]), []

    def noise(step):
        drawn.append(step)
        return normals(step, (2, 1))(0)

    sampler(gaussian, x, ladder, noise=noise)
    assert bool(drawn) == TABLE[name].draws
    if TABLE[name].draws:
        with pytest.raises(ValueError, match="noise: a stochastic sampler"):
            sampler(gaussian, x, ladder)
    else:
        sampler(gaussian, x, ladder)


@pytest.mark.parametrize(
    ("name", "key"), [("deis order=5", "order"), ("ddim eta=1.5", "eta"), ("dpmpp_sde eta=-1", "eta")]
)
def test_keys_out_of_their_range_are_refused(name, key):
    with pytest.raises(ValueError, match=key):
        sampler_of(name)(gaussian, torch.zeros(2, 1), torch.tensor([1.0, 0.0]), noise=normals(0, (2, 1)))


def test_sampling_takes_no_gradients_but_its_results_may_train():
    weight = torch.ones(1, requires_grad=True)
    result = heun(lambda x, sigma: weight * x, torch.ones(2, 1), torch.tensor([1.0, 0.5, 0.0]))
    assert not result.requires_grad and not result.is_inference()
    (weight * result).sum().backward()


# --- parity with diffusers, on the same network from the same noise

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SCHEDULE = scaled_linear(0.00085, 0.012)
SHAPE = (2, 4, 8, 8)


def network(x, timestep):
    """Any smooth function of the scaled latent and the timestep."""
    phase = torch.as_tensor(timestep, dtype=x.dtype).reshape(-1, 1, 1, 1) / 300
    return torch.tanh(0.8 * x + phase.cos()) + 0.3 * x.roll(1, -1)


def ours(sampler, sigmas, n, precond=None, schedule=SCHEDULE, **options):
    denoiser = Denoiser(network, precond or Eps(schedule))
    x = init_noise(n, sigmas[0], schedule)
    return sampler(lambda x, sigma: denoiser(x, sigma, {}), x, sigmas, **options)


def theirs(scheduler, x, **options):
    for timestep in scheduler.timesteps:
        x = scheduler.step(
            network(scheduler.scale_model_input(x, timestep), timestep), timestep, x, **options
        ).prev_sample
    return x


def first_noise(seed=0):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_equals_diffusers(eta):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**SD, set_alpha_to_one=False, steps_offset=1, clip_sample=False)
    scheduler.set_timesteps(50)
    n, sigmas = first_noise(), ddim_sigmas(50, SCHEDULE)
    generator = torch.Generator().manual_seed(5)
    expected = theirs(scheduler, n, eta=eta, generator=generator)
    generator = torch.Generator().manual_seed(5)
    result = ours(ddim, sigmas, n, noise=lambda step: torch.randn(SHAPE, generator=generator), eta=eta)
    scale = (1 + sigmas[-1] ** 2).sqrt().item()  # the published schedule stops above 0, in variance-preserving scale
    torch.testing.assert_close(result / scale, expected, rtol=1e-4, atol=1e-4)


def test_ddpm_equals_diffusers():
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(**SD, clip_sample=False)
    scheduler.set_timesteps(1000)
    n = first_noise()
    expected = theirs(scheduler, n, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    result = ours(ddpm, trailing(1000, SCHEDULE), n, noise=lambda step: torch.randn(SHAPE, generator=generator))
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)


def test_a_thousand_steps_of_ddpm_in_fp32_stay_with_the_posterior_in_float64():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    left = torch.cumprod(1 - betas, 0)  # alpha bar
    before = torch.cat([left.new_ones(1), left[:-1]])
    noises = torch.randn(1000, *SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = first_noise().double()
    for k, t in enumerate(reversed(range(1000))):  # arXiv:2006.11239, equations 7 and 15
        x0 = (x - (1 - left[t]).sqrt() * network(x, x.new_full((SHAPE[0],), t))) / left[t].sqrt()
        mean = before[t].sqrt() * betas[t] * x0 + (1 - betas[t]).sqrt() * (1 - before[t]) * x
        x = mean / (1 - left[t]) + (betas[t] * (1 - before[t]) / (1 - left[t])).sqrt() * noises[k]
    result = ours(ddpm, trailing(1000, SCHEDULE), first_noise(), noise=lambda step: noises[step].float())
    assert (result - x).norm() < 4e-6 * x.norm()


def test_euler_equals_diffusers():
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(**SD, timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    sigmas, n = trailing(20, SCHEDULE), first_noise()
    torch.testing.assert_close(scheduler.sigmas.double(), sigmas, rtol=1e-5, atol=0)
    expected = theirs(scheduler, init_noise(n, sigmas[0], SCHEDULE))
    torch.testing.assert_close(ours(euler, sigmas, n), expected, rtol=1e-4, atol=1e-4)


def test_ancestral_euler_equals_diffusers():
    from diffusers import EulerAncestralDiscreteScheduler

    scheduler = EulerAncestralDiscreteScheduler(**SD, timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    sigmas, n = trailing(20, SCHEDULE), first_noise()
    x = init_noise(n, sigmas[0], SCHEDULE)
    expected = theirs(scheduler, x, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    result = ours(euler_ancestral, sigmas, n, noise=lambda step: torch.randn(SHAPE, generator=generator))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_heun_equals_diffusers():
    from diffusers import HeunDiscreteScheduler

    scheduler = HeunDiscreteScheduler(**SD, timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    sigmas, n = trailing(20, SCHEDULE), first_noise()
    expected = theirs(scheduler, init_noise(n, sigmas[0], SCHEDULE))
    torch.testing.assert_close(ours(heun, sigmas, n), expected, rtol=1e-4, atol=1e-4)


def test_dpmpp_2m_equals_diffusers():
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(**SD, timestep_spacing="trailing", final_sigmas_type="zero")
    scheduler.set_timesteps(20)
    n = first_noise()
    torch.testing.assert_close(ours(dpmpp_2m, trailing(20, SCHEDULE), n), theirs(scheduler, n), rtol=1e-4, atol=1e-4)


def test_plms_equals_diffusers():
    from diffusers import PNDMScheduler

    scheduler = PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
    scheduler.set_timesteps(50)
    n, sigmas = first_noise(), ddim_sigmas(50, SCHEDULE)
    expected = theirs(scheduler, n)
    scale = (1 + sigmas[-1] ** 2).sqrt().item()
    torch.testing.assert_close(ours(plms, sigmas, n) / scale, expected, rtol=1e-3, atol=1e-3)


def test_deis_equals_diffusers():
    from diffusers import DEISMultistepScheduler

    scheduler = DEISMultistepScheduler(**SD, solver_order=3, timestep_spacing="trailing", lower_order_final=False)
    scheduler.set_timesteps(20)
    sigmas, n = torch.cat([trailing(20, SCHEDULE)[:-1], SCHEDULE.sigmas[:1]]), first_noise()
    expected = theirs(scheduler, n)
    scale = (1 + sigmas[-1] ** 2).sqrt().item()
    torch.testing.assert_close(ours(deis, sigmas, n) / scale, expected, rtol=1e-3, atol=1e-3)


def test_the_stochastic_solver_without_noise_is_the_deterministic_one():
    x = 80 * normals(0, (5, 2))(0)
    ladder = karras(20, 0.002, 80.0)
    assert torch.equal(dpmpp_sde(gaussian, x, ladder, eta=0.0), dpmpp_2s(gaussian, x, ladder))


def test_euler_on_a_flow_equals_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler

    class Unscaled(FlowMatchEulerDiscreteScheduler):
        def scale_model_input(self, x, timestep):
            return x

    scheduler = Unscaled(shift=3.0)
    sigmas, n = flow(10, shift=3.0), first_noise()
    flow_time = (sigmas / (1 + sigmas))[:-1]
    unshifted = flow_time / (3 - 2 * flow_time)
    scheduler.set_timesteps(sigmas=unshifted.tolist())
    schedule = FlowSchedule()
    result = ours(euler, sigmas, n, precond=Flow(schedule), schedule=schedule)
    torch.testing.assert_close(result, theirs(scheduler, n), rtol=1e-4, atol=1e-4)
