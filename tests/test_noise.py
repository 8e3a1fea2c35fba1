"""Training noise: cdf and icdf are inverse, restriction is exact, and discrete noise keeps to its atoms."""

import itertools
import math

import pytest
import torch

from ldm.diffusion.noise import DiscreteNoise, LogNormal, LogUniform, Restricted, SamplerMatched, logit_normal, stratify
from ldm.diffusion.schedule import VE, scaled_linear
from ldm.diffusion.sigmas import ddim_sigmas, exponential, karras

SCHEDULE = scaled_linear(0.00085, 0.012)
CONTINUOUS = {
    "log_normal": LogNormal(-1.2, 1.2),
    "log_uniform": LogUniform(0.002, 80.0),
    "logit_normal": logit_normal(0.0, 1.0, shift=3.0),
    "sampler_matched": SamplerMatched(karras(25, 0.002, 80.0)),
    "restricted": Restricted(LogNormal(-1.2, 1.2), [(0.01, 0.1), (0.5, math.inf)]),
}
ALL = {**CONTINUOUS, "discrete": DiscreteNoise(SCHEDULE)}
U = torch.linspace(0, 1, 2003, dtype=torch.float64)[1:-1]


def ks_statistic(sigma, cdf):
    """Kolmogorov-Smirnov distance times sqrt(n): above 1.63 in one of a hundred true samples."""
    n = len(sigma)
    u = cdf(sigma.sort().values)
    ranks = torch.arange(n + 1, dtype=torch.float64) / n
    return math.sqrt(n) * max((u - ranks[:-1]).max().item(), (ranks[1:] - u).max().item())


@pytest.mark.parametrize("noise", CONTINUOUS.values(), ids=CONTINUOUS.keys())
def test_cdf_and_icdf_are_inverse(noise):
    sigma = noise.icdf(U)
    assert sigma.dtype == torch.float64 and (sigma.diff() > 0).all()
    torch.testing.assert_close(noise.cdf(sigma), U, rtol=0, atol=1e-13)
    torch.testing.assert_close(noise.icdf(noise.cdf(sigma)), sigma, rtol=1e-10, atol=0)


@pytest.mark.parametrize("noise", ALL.values(), ids=ALL.keys())
def test_cdf_runs_from_0_to_1(noise):
    assert noise.cdf(torch.tensor([0.0, math.inf])).tolist() == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("noise", CONTINUOUS.values(), ids=CONTINUOUS.keys())
def test_samples_follow_the_cdf(noise):
    sigma = noise.sample(20_000, torch.Generator().manual_seed(0))
    assert sigma.isfinite().all() and ks_statistic(sigma, noise.cdf) < 1.63


def test_discrete_noise_is_uniform_over_its_atoms():
    noise = DiscreteNoise(SCHEDULE)
    u = torch.cat([U, torch.arange(1, 1001, dtype=torch.float64) / 1000])
    sigma = noise.icdf(u)
    assert torch.isin(sigma, SCHEDULE.sigmas).all()
    assert (noise.cdf(sigma) >= u).all()
    assert (noise.below(sigma) < u).all()  # the smallest such atom
    assert torch.equal(noise.icdf(noise.cdf(SCHEDULE.sigmas)), SCHEDULE.sigmas)
    counts = SCHEDULE.timestep(noise.sample(100_000, torch.Generator().manual_seed(0))).long().bincount(minlength=1000)
    assert ((counts - 100) ** 2 / 100).sum() < 1170  # chi^2, 999 degrees of freedom: 1 in 10 000


def test_logit_normal_is_log_normal_sigma_and_a_shift_multiplies_sigma():
    generator = torch.Generator().manual_seed(0)
    t = torch.sigmoid(0.3 + 0.7 * torch.randn(20_000, dtype=torch.float64, generator=generator))
    shifted = 3 * t / (1 + 2 * t)  # the time shift of rectified flow, arXiv:2403.03206
    assert ks_statistic(t / (1 - t), logit_normal(0.3, 0.7).cdf) < 1.63
    assert ks_statistic(shifted / (1 - shifted), logit_normal(0.3, 0.7, shift=3.0).cdf) < 1.63


@pytest.mark.parametrize("sigmas", [karras(25, 0.002, 80.0), ddim_sigmas(50, SCHEDULE)], ids=["to 0", "to a level"])
def test_quantiles_of_matched_noise_tile_the_ladder(sigmas):
    noise, levels = SamplerMatched(sigmas), sigmas[sigmas > 0].flip(0)
    u = torch.linspace(0, 1, len(levels), dtype=torch.float64)
    assert torch.equal(noise.icdf(u), levels)
    torch.testing.assert_close(noise.cdf(levels), u, rtol=0, atol=1e-15)
    middles = noise.icdf((u[1:] + u[:-1]) / 2)  # between two levels ln(sigma) is uniform
    torch.testing.assert_close(middles, (levels[1:] * levels[:-1]).sqrt(), rtol=1e-13, atol=0)


def test_matched_to_an_exponential_ladder_is_log_uniform():
    noise, reference = SamplerMatched(exponential(10, 0.01, 50.0)), LogUniform(0.01, 50.0)
    torch.testing.assert_close(noise.icdf(U), reference.icdf(U), rtol=1e-12, atol=0)


def test_a_ladder_without_levels_between_is_refused():
    with pytest.raises(ValueError, match="num_steps"):
        SamplerMatched(torch.tensor([80.0, 0.0]))


@pytest.mark.parametrize("noise", ALL.values(), ids=ALL.keys())
def test_restrictions_tile_their_parent(noise):
    cuts = [0.0, *noise.icdf(torch.tensor([0.2, 0.55, 0.9])).tolist(), math.inf]
    parts = [Restricted(noise, [interval]) for interval in itertools.pairwise(cuts)]
    assert sum(part.mass for part in parts) == pytest.approx(1, abs=1e-12)
    sigma = noise.icdf(U)
    torch.testing.assert_close(sum(part.mass * part.cdf(sigma) for part in parts), noise.cdf(sigma), rtol=0, atol=1e-12)
    ends = torch.tensor([0.0, 2.0**-53, 0.5, 1 - 2.0**-53, 1.0], dtype=torch.float64)
    for part, lo, hi in zip(parts, cuts[:-1], cuts[1:], strict=True):
        assert ((part.icdf(ends) >= lo) & (part.icdf(ends) < hi)).all()


def test_restricted_samples_follow_the_truncated_cdf():
    noise, intervals = LogNormal(-1.2, 1.2), [(0.0757422, 0.3), (0.9, 9.609593)]
    sigma = Restricted(noise, intervals).sample(50_000, torch.Generator().manual_seed(0))
    inside = torch.stack([(sigma >= lo) & (sigma < hi) for lo, hi in intervals])
    assert inside.any(0).all()
    edges = noise.cdf(torch.tensor(intervals, dtype=torch.float64))
    share = (edges[0, 1] - edges[0, 0]) / (edges[:, 1] - edges[:, 0]).sum()
    assert inside[0].double().mean().item() == pytest.approx(share.item(), abs=0.01)
    for (lo, hi), chosen in zip(intervals, inside, strict=True):
        low, high = noise.cdf(torch.tensor([lo, hi], dtype=torch.float64))
        assert ks_statistic(sigma[chosen], lambda s, low=low, high=high: (noise.cdf(s) - low) / (high - low)) < 1.63


def test_restricting_twice_is_restricting_once():
    noise = LogNormal(-1.2, 1.2)
    twice = Restricted(Restricted(noise, [(0.1, 5.0)]), [(0.5, math.inf)])
    torch.testing.assert_close(twice.icdf(U), Restricted(noise, [(0.5, 5.0)]).icdf(U), rtol=1e-12, atol=0)


def test_empty_and_near_empty_restrictions_are_refused():
    with pytest.raises(ValueError, match="empty"):
        Restricted(DiscreteNoise(SCHEDULE), [(14.66, math.inf)])
    with pytest.raises(ValueError, match="near-empty"):
        Restricted(LogNormal(-1.2, 1.2), [(150.0, math.inf)])
    for intervals in ([], [(1.0, 1.0)], [(0.5, 1.0), (0.9, 2.0)], [(1.0, 2.0), (0.1, 0.2)]):
        with pytest.raises(ValueError, match="sigma"):
            Restricted(LogNormal(-1.2, 1.2), intervals)


def test_discrete_noise_needs_a_chain_of_steps():
    with pytest.raises(ValueError, match=r"schedule=edm: has no steps; .*noise=discrete"):
        DiscreteNoise(VE())


def test_strata_cover_the_unit_interval_evenly_and_follow_the_number():
    numbers = torch.arange(96, 160)
    u = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v = stratify(u, numbers, 64)
    assert torch.equal((v * 64).floor().long().sort().values, torch.arange(64))
    assert torch.equal(stratify(u[5:9], numbers[5:9], 64), v[5:9])
    assert stratify(torch.tensor([1 - 2.0**-53], dtype=torch.float64), torch.tensor([7]), 8).item() < 1
