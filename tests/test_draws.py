"""Addressed draws: the published Philox vectors, the right distributions, and dependence on the address alone."""

import math

import pytest
import torch

from ldm.diffusion.counter_random import normal, philox, uniform

WORD = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((WORD,) * 4, (WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    words = philox(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(word.item() for word in words) == expected


def test_uniforms_have_the_moments_and_the_cdf_of_a_uniform():
    u = uniform(0, "sigma", torch.arange(50_000), count=3)
    assert u.shape == (50_000, 3) and u.dtype == torch.float64
    assert u.min() > 0 and u.max() < 1
    assert abs(u.mean().item() - 1 / 2) < 3e-3 and abs(u.var().item() - 1 / 12) < 1e-3
    assert torch.corrcoef(u.T).fill_diagonal_(0).abs().max() < 0.02
    ranks = (torch.arange(u.numel()) + 0.5) / u.numel()
    assert (u.flatten().sort().values - ranks).abs().max() < 1.63 / math.sqrt(u.numel())


def test_normals_have_the_moments_and_the_cdf_of_a_normal():
    n = normal(0, "noise", torch.arange(500), (3, 7, 19))
    assert n.shape == (500, 3, 7, 19) and n.dtype == torch.float32
    assert abs(n.mean().item()) < 0.01 and abs(n.var().item() - 1) < 0.01
    assert abs((n**4).mean().item() - 3) < 0.05
    assert torch.corrcoef(n.flatten(1)[:, :8].T).fill_diagonal_(0).abs().max() < 0.2
    quantiles = torch.special.ndtr(n.flatten().double()).sort().values
    ranks = (torch.arange(n.numel()) + 0.5) / n.numel()
    assert (quantiles - ranks).abs().max() < 1.63 / math.sqrt(n.numel())


def test_a_draw_depends_on_its_own_number_only():
    numbers = torch.tensor([5, 2**40 + 1, 17, 0, 999_999_999_999])
    order = torch.tensor([3, 0, 4])
    for draw in (lambda n: uniform(1, "u", n, 5), lambda n: normal(1, "n", n, (4, 5, 3))):
        assert torch.equal(draw(numbers)[order], draw(numbers[order]))
        assert torch.equal(draw(numbers), torch.cat([draw(number[None]) for number in numbers]))


def test_more_draws_continue_the_fewer():
    numbers = torch.arange(4)
    assert torch.equal(uniform(1, "u", numbers, 7)[:, :2], uniform(1, "u", numbers, 2))


def test_seed_purpose_number_and_stream_each_change_the_draw():
    base = uniform(0, "a", torch.tensor([3]), 4)
    others = [
        uniform(1, "a", torch.tensor([3]), 4),
        uniform(0, "b", torch.tensor([3]), 4),
        uniform(0, "a", torch.tensor([4]), 4),
        uniform(0, "a", torch.tensor([3 + 2**32]), 4),
        uniform(0, "a", torch.tensor([3]), 4, stream=1),
    ]
    for other in others:
        assert not torch.isin(base, other).any()


def test_ranks_of_one_step_draw_noise_and_levels_of_their_own():
    """Under one seed, the samples that two ranks have in a step never share their noise or their level."""
    ranks = torch.arange(64, 80).split(8)
    levels = torch.cat([uniform(0, "sigma", numbers)[:, 0] for numbers in ranks])
    noise = torch.cat([normal(0, "noise", numbers, (4, 8, 8)) for numbers in ranks]).flatten(1)
    assert len(levels.unique()) == 16
    correlation = torch.corrcoef(noise) - torch.eye(16)
    assert correlation.abs().max() < 0.35  # 256 numbers each: five and a half standard deviations
