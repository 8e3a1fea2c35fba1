"""Sigma schedules: exactly the steps asked for, strictly decreasing, with the published spacings and ends."""

import pytest
import torch

from ldm.diffusion.schedule import MAX_SIGMA, VE, Flow, scaled_linear
from ldm.diffusion.sigmas import ddim_sigmas, exponential, flow, given, init_noise, karras, polynomial, trailing

SCHEDULE = scaled_linear(0.00085, 0.012)
SIGMAS = {
    "karras": lambda n: karras(n, 0.002, 80.0),
    "exponential": lambda n: exponential(n, 0.002, 80.0),
    "ddim": lambda n: ddim_sigmas(n, SCHEDULE),
    "trailing": lambda n: trailing(n, SCHEDULE),
    "flow": lambda n: flow(n, shift=3.0),
    "polynomial": lambda n: polynomial(n, 0.002, 80.0, power=2.0),
}


@pytest.mark.parametrize("name", SIGMAS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 25, 50, 333, 400, 999])
def test_a_ladder_has_exactly_its_steps_and_decreases(name, num_steps):
    sigmas = SIGMAS[name](num_steps)
    assert sigmas.shape == (num_steps + 1,) and sigmas.dtype == torch.float64
    assert (sigmas.diff() < 0).all() and sigmas.isfinite().all()
    assert sigmas[-1] == (SCHEDULE.sigmas[0] if name == "ddim" else 0)


def test_ddim_takes_any_number_of_steps_of_the_chain_but_its_last():
    for num_steps in range(1, 1000):
        sigmas = ddim_sigmas(num_steps, SCHEDULE)
        assert len(sigmas) == num_steps + 1 and (sigmas.diff() < 0).all()
        steps = SCHEDULE.timestep(sigmas)
        assert torch.equal(steps, steps.round()) and steps[0] <= 999 and steps[-1] == 0
    with pytest.raises(ValueError, match="num_steps"):
        ddim_sigmas(1000, SCHEDULE)


def test_karras_is_edms_equation_5():
    sigmas = karras(18, 0.002, 80.0, rho=7.0)
    expected = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert sigmas[:-1].tolist() == pytest.approx(expected, rel=1e-12)
    assert sigmas[0] == 80.0 and sigmas[17] == 0.002


def test_exponential_is_geometric():
    ratios = exponential(10, 0.01, 10.0)[:-1].log().diff()
    torch.testing.assert_close(ratios, ratios.mean().expand(9))


def test_a_polynomial_of_power_1_is_geometric_and_above_it_dwells_at_low_noise():
    torch.testing.assert_close(polynomial(9, 0.01, 10.0), exponential(9, 0.01, 10.0))
    assert (polynomial(9, 0.01, 10.0, power=2.0)[1:-2] < exponential(9, 0.01, 10.0)[1:-2]).all()


def test_given_levels_are_taken_as_they_are_or_refused():
    assert given([3, 1.0, 0]).tolist() == [3.0, 1.0, 0.0]
    for levels in ([1.0], [1.0, 2.0], [1.0, -1.0], [float("inf"), 0.0], [1.0, 1.0]):
        with pytest.raises(ValueError, match=r"sigmas\.levels"):
            given(levels)


def test_ddim_has_the_published_steps():
    steps = SCHEDULE.timestep(ddim_sigmas(50, SCHEDULE))
    assert steps.tolist() == [*range(981, 0, -20), 0]


def test_trailing_starts_at_the_last_step_and_can_be_the_whole_chain():
    assert SCHEDULE.timestep(trailing(10, SCHEDULE)[:-1]).tolist() == list(range(999, 0, -100))
    assert torch.equal(trailing(1000, SCHEDULE)[:-1], SCHEDULE.sigmas.flip(0))


def test_flow_is_even_and_shifted_in_time():
    sigmas = flow(4, shift=3.0)
    t = torch.tensor([0.75, 0.5, 0.25, 0.0], dtype=torch.float64)
    shifted = 3 * t / (1 + 2 * t)
    assert sigmas[0] == MAX_SIGMA
    torch.testing.assert_close(sigmas[1:] / (1 + sigmas[1:]), shifted)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: karras(0, 0.002, 80.0), "num_steps"),
        (lambda: exponential(-1, 0.002, 80.0), "num_steps"),
        (lambda: polynomial(0, 0.002, 80.0), "num_steps"),
        (lambda: ddim_sigmas(0, SCHEDULE), "num_steps"),
        (lambda: ddim_sigmas(-3, SCHEDULE), "num_steps"),
        (lambda: trailing(0, SCHEDULE), "num_steps"),
        (lambda: ddim_sigmas(5, VE()), "schedule=edm: has no steps"),
        (lambda: trailing(5, Flow()), "schedule=flow: has no steps"),
        (lambda: karras(5, 80.0, 0.002), "sigma_min"),
        (lambda: karras(5, 0.0, 80.0), "sigma_min"),
        (lambda: karras(5, 0.002, 80.0, rho=0.0), "rho"),
        (lambda: exponential(5, 0.0, 80.0), "sigma_min"),
        (lambda: ddim_sigmas(1000, SCHEDULE), "num_steps"),
        (lambda: trailing(1001, SCHEDULE), "num_steps"),
        (lambda: flow(5, shift=0.0), "shift"),
        (lambda: flow(0), "num_steps"),
    ],
)
def test_bad_ladders_are_refused_by_key(make, key):
    with pytest.raises(ValueError, match=key):
        make()


def test_the_first_noise_in_each_processs_own_scale():
    n = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma = SCHEDULE.sigmas[-1].item()
    torch.testing.assert_close(init_noise(n, sigma, SCHEDULE) / (1 + sigma**2) ** 0.5, n)
    torch.testing.assert_close(init_noise(n, 80.0, VE()), 80 * n)
    torch.testing.assert_close(init_noise(n, MAX_SIGMA, Flow()) / (1 + MAX_SIGMA), n)
    assert init_noise(n, sigma, SCHEDULE).dtype == torch.float32


def test_the_first_noise_equals_that_of_diffusers():
    from diffusers import EulerDiscreteScheduler

    euler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    euler.set_timesteps(50)
    n = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(init_noise(n, ddim_sigmas(50, SCHEDULE)[0], SCHEDULE), n * euler.init_noise_sigma)
