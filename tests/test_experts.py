"""Experts: the tree of eDiff-I tiles the noise, restriction follows it, and routing changes nothing but the member."""

import math
import random

import pytest
import torch
from torch import nn

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.experts import Expert, check_cover, children, node_interval, parent, route, subtract
from ldm.diffusion.noise import DiscreteNoise, LogNormal, LogUniform, logit_normal
from ldm.diffusion.precond import V
from ldm.diffusion.samplers import dpmpp_2m, euler, heun, kutta3
from ldm.diffusion.schedule import VE, scaled_linear
from ldm.diffusion.sigmas import karras
from ldm.errors import UserError

EDIFFI = LogNormal(-1.2, 1.2)
SCHEDULE = scaled_linear(0.00085, 0.012)
NOISES = {
    "log_normal": EDIFFI,
    "log_uniform": LogUniform(0.002, 80.0),
    "logit_normal": logit_normal(),
    "discrete": DiscreteNoise(SCHEDULE),
}
each_noise = pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES.keys())
CONFIG_D = [Expert(node=[3, 0]), Expert(exclude=[[3, 0], [9, 511]]), Expert(node=[9, 511])]


@pytest.mark.parametrize(
    ("level", "index", "sigma_lo", "sigma_hi"),
    [
        (0, 0, 0.0, math.inf),
        (1, 0, 0.0, 0.301194),
        (1, 1, 0.301194, math.inf),
        (2, 0, 0.0, 0.134071),
        (2, 1, 0.134071, 0.301194),
        (2, 2, 0.301194, 0.676642),
        (2, 3, 0.676642, math.inf),
        (3, 0, 0.0, 0.0757422),
        (3, 2, 0.134071, 0.205488),
        (3, 4, 0.301194, 0.441475),
        (3, 7, 1.197719, math.inf),
        (4, 15, 1.898273, math.inf),
        (5, 31, 2.815890, math.inf),
        (6, 63, 3.993426, math.inf),
        (7, 127, 5.479812, math.inf),
        (8, 255, 7.330773, math.inf),
        (9, 511, 9.609593, math.inf),
        (4, 0, 0.0, 0.047790),
        (5, 0, 0.0, 0.032216),
        (6, 0, 0.0, 0.022717),
        (7, 0, 0.0, 0.016555),
        (8, 0, 0.0, 0.012375),
        (9, 0, 0.0, 0.009440),
    ],
)
def test_the_boundaries_of_ediffi(level, index, sigma_lo, sigma_hi):
    assert node_interval(EDIFFI, level, index) == pytest.approx((sigma_lo, sigma_hi), rel=1e-6, abs=6e-7)


@pytest.mark.parametrize(
    ("mean", "std", "cuts"),
    [
        (-1.2 + math.log(2), 1.2, (0.15148, 0.60239, 19.219)),
        (-0.4, 1.0, (0.21217, 0.67032, 12.009)),
        (-0.8, 1.6, (0.07132, 0.44933, 45.468)),
    ],
)
def test_the_cuts_of_other_priors(mean, std, cuts):
    noise = LogNormal(mean, std)
    found = (node_interval(noise, 3, 0)[1], node_interval(noise, 1, 0)[1], node_interval(noise, 9, 511)[0])
    assert found == pytest.approx(cuts, rel=5e-5)


def test_the_cuts_in_the_steps_of_stable_diffusion():
    cuts = {(1, 1): 81, (2, 3): 243, (3, 7): 409, (5, 31): 657, (8, 255): 875, (9, 511): 926}
    sigma = torch.tensor([node_interval(EDIFFI, *node)[0] for node in cuts], dtype=torch.float64)
    assert (SCHEDULE.timestep(sigma) - torch.tensor(list(cuts.values()))).abs().max() < 1


def test_parents_and_children():
    assert children(3, 5) == ((4, 10), (4, 11))
    assert parent(4, 10) == parent(4, 11) == (3, 5)
    for level, index in [(-1, 0), (2, 4), (2, -1)]:
        with pytest.raises(ValueError, match=r"expert\.node"):
            node_interval(EDIFFI, level, index)
    with pytest.raises(ValueError, match="root"):
        parent(0, 0)


@each_noise
def test_a_level_tiles_and_children_split_their_parent(noise):
    for level in range(6):
        check_cover([[node_interval(noise, level, index)] for index in range(2**level)])
    for index in range(4):
        low, high = (node_interval(noise, *child) for child in children(2, index))
        assert (low[0], high[1]) == node_interval(noise, 2, index) and low[1] == high[0]


def test_cuts_that_fp32_has_rounded_agree_with_those_that_it_has_not():
    noise = DiscreteNoise(SCHEDULE)
    low, high = node_interval(noise, 2, 0), node_interval(noise, 2, 1)
    rounded = torch.tensor(low[1]).float().item()  # as runs of earlier versions say it
    assert rounded != high[0]
    rest = node_interval(noise, 1, 1)
    check_cover([[(low[0], rounded)], [high], [rest]])
    assert subtract([(0.0, math.inf)], (0.0, rounded)) == [(rounded, math.inf)]
    assert subtract([high], (rounded, high[1])) == []
    with pytest.raises(ValueError, match="gap"):
        check_cover([[(low[0], rounded * (1 - 1e-6))], [high], [rest]])


@each_noise
def test_an_expert_may_draw_otherwise_within_the_cuts_of_the_training_noise(noise):
    uniform, u = LogUniform(0.002, 80.0), torch.linspace(0, 1, 101, dtype=torch.float64)[1:-1]
    plain = [Expert(node=[1, index]).intervals(noise) for index in (0, 1)]
    check_cover([plain[0], Expert(node=[1, 1], within=uniform).intervals(noise)])
    for index, ((lo, hi),) in enumerate(plain):
        expert = Expert(node=[1, index], within=uniform)
        assert expert.intervals(noise) == plain[index]
        sigma, ends = expert.restrict(noise).icdf(u), (max(lo, 0.002), min(hi, 80.0))
        assert bool(((sigma >= lo) & (sigma < hi)).all())
        expected = ends[0] ** (1 - u) * ends[1] ** u
        torch.testing.assert_close(sigma, expected, rtol=1e-6, atol=0)
    assert Expert(within=uniform).restrict(noise) is uniform and Expert().restrict(noise) is noise
    with pytest.raises(ValueError, match=r"near-empty|empty"):
        Expert(node=[1, 1], within=LogUniform(1e-5, 1e-4)).restrict(noise)


@each_noise
def test_nodes_hold_their_share_of_the_training_noise(noise):
    tolerance = 1e-3 if noise is NOISES["discrete"] else 1e-12
    for level, index in [(1, 0), (1, 1), (2, 2), (3, 0), (5, 31)]:
        assert Expert(node=[level, index]).restrict(noise).mass == pytest.approx(2.0**-level, abs=tolerance)


def test_discrete_cuts_snap_to_atoms():
    noise = NOISES["discrete"]
    cut = node_interval(noise, 1, 0)[1]
    assert cut == SCHEDULE.sigmas[500].item()
    assert torch.equal(Expert([1, 1]).restrict(noise).icdf(torch.tensor([0.0, 1.0])), SCHEDULE.sigmas[[500, 999]])
    assert torch.equal(Expert([1, 0]).restrict(noise).icdf(torch.tensor([0.0, 1.0])), SCHEDULE.sigmas[[0, 499]])


def test_empty_nodes_of_a_discrete_noise_are_refused():
    with pytest.raises(ValueError, match=r"expert\.node: \[12, 4094\] is empty"):
        node_interval(NOISES["discrete"], 12, 4094)


@each_noise
def test_random_trees_cover_the_noise(noise):
    choice = random.Random(0)
    for _ in range(20):
        leaves = [(0, 0)]
        for _ in range(choice.randrange(1, 8)):
            shallow = [leaf for leaf in leaves if leaf[0] < 7]
            leaf = choice.choice(shallow)
            leaves.remove(leaf)
            leaves += children(*leaf)
        grown = choice.sample(leaves, choice.randrange(0, len(leaves)))
        members = [Expert(node=leaf) for leaf in grown] + [Expert(exclude=grown)]
        check_cover([member.intervals(noise) for member in members])
        shares = [member.restrict(noise) for member in members if member.intervals(noise) != [(0.0, math.inf)]]
        assert not shares or sum(share.mass for share in shares) == pytest.approx(1, abs=1e-12)


def test_the_experts_of_config_d():
    low, middle, high = (expert.intervals(EDIFFI) for expert in CONFIG_D)
    assert middle == [(low[0][1], high[0][0])]
    assert CONFIG_D[1].restrict(EDIFFI).mass == pytest.approx(0.873047, abs=1e-6)
    sigma = CONFIG_D[1].restrict(EDIFFI).sample(100_000, torch.Generator().manual_seed(0))
    assert sigma.min() >= 0.0757421 and sigma.max() < 9.609594
    sigma = CONFIG_D[2].restrict(EDIFFI).sample(100_000, torch.Generator().manual_seed(0))
    assert sigma.min().item() == pytest.approx(9.6096, abs=1e-3)
    assert sigma.median().item() == pytest.approx(12.385, abs=0.03)


def test_a_complement_may_have_holes_and_complements_once_more():
    without = Expert(exclude=[[2, 1]])
    assert without.intervals(EDIFFI) == [
        (0.0, node_interval(EDIFFI, 2, 1)[0]),
        (node_interval(EDIFFI, 2, 1)[1], math.inf),
    ]
    sigma = without.restrict(EDIFFI).sample(30_000, torch.Generator().manual_seed(0))
    assert (sigma < 0.134071).double().mean().item() == pytest.approx(1 / 3, abs=0.01)
    assert not ((sigma > 0.134072) & (sigma < 0.301193)).any()
    again = Expert(exclude=[[2, 0], [1, 1]])
    assert again.intervals(EDIFFI) == [node_interval(EDIFFI, 2, 1)]
    assert Expert(node=[1, 0], exclude=[[2, 0]]).intervals(EDIFFI) == [node_interval(EDIFFI, 2, 1)]


def test_the_whole_is_the_noise_itself():
    assert Expert().restrict(EDIFFI) is EDIFFI
    assert Expert(node=[0, 0]).intervals(EDIFFI) == [(0.0, math.inf)]


def test_excluding_everything_is_refused():
    with pytest.raises(ValueError, match=r"expert\.exclude"):
        Expert(node=[2, 1], exclude=[[1, 0]]).intervals(EDIFFI)
    for exclude in ([[1, 2]], [[1]], [[3, 0, 1]]):
        with pytest.raises(ValueError, match=r"expert\.exclude"):
            Expert(exclude=exclude)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([[(0.0, 1.0)], [(2.0, math.inf)]], r"gap, .* \[1, 2\)"),
        ([[(0.0, 1.0)], [(1.0, 5.0)]], r"gap, .* \[5, inf\)"),
        ([[(0.5, math.inf)]], r"gap, .* \[0, 0.5\)"),
        ([[(0.0, 2.0)], [(1.0, math.inf)]], r"overlap, members 0 and 1 .* \[1, 2\)"),
        ([[(0.0, math.inf)], [(1.0, 2.0)]], r"overlap, members 0 and 1 .* \[1, 2\)"),
        ([[(0.0, 1.0), (1.0, 1.0)], [(1.0, math.inf)]], "member 0 has an empty interval"),
        ([], r"gap, .* \[0, inf\)"),
    ],
)
def test_a_gap_or_an_overlap_is_named(sets, message):
    with pytest.raises(ValueError, match=message):
        check_cover(sets)


# --- routing


class Network(nn.Module):
    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layer = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.layer.weight.data = 0.3 * torch.randn(self.layer.weight.shape, generator=generator)

    def forward(self, x, c_noise, *, vector):
        return torch.tanh(self.layer(x) + (c_noise + vector)[:, None, None, None])


def denoiser(seed):
    return Denoiser(Network(seed), V(VE()))


def bound(model, cond):
    return lambda x, sigma: model(x, sigma, cond)


class Constant:
    def __init__(self, value):
        self.value = value
        self.num_calls = 0

    def __call__(self, x, sigma):
        self.num_calls += 1
        return torch.full_like(x, self.value)


PARTITIONS = {
    "halves": [Expert([1, 0]), Expert([1, 1])],
    "config_d": CONFIG_D,
    "hole": [Expert([2, 1]), Expert(exclude=[[2, 1]])],
    "level_3": [Expert([3, index]) for index in range(8)],
}


@pytest.mark.parametrize("sampler", [euler, heun, dpmpp_2m, kutta3])
@pytest.mark.parametrize("experts", PARTITIONS.values(), ids=PARTITIONS.keys())
def test_copies_of_one_model_sample_bit_identically_under_any_partition(sampler, experts):
    single = denoiser(seed=0)
    x = 80 * torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    cond = {"vector": torch.tensor([0.1, 0.2, 0.3])}
    copies = [bound(denoiser(seed=0), cond) for _ in experts]
    ensemble = route(copies, [expert.intervals(EDIFFI) for expert in experts])
    ladder = karras(12, 0.002, 80.0)
    samples = [sampler(denoise, x, ladder) for denoise in (bound(single, cond), ensemble)]
    assert torch.equal(*samples)


def test_a_cut_belongs_to_the_higher_noise_side():
    for noise in NOISES.values():
        experts = [Expert([2, index]).intervals(noise) for index in range(4)]
        ensemble = route([Constant(float(index)) for index in range(4)], experts)
        for index in range(1, 4):
            cut = torch.tensor([experts[index][0][0]], dtype=torch.float64)
            for level in (cut, cut.float(), torch.nextafter(cut.float(), torch.tensor([100.0]))):
                assert ensemble(torch.zeros(1, 3), level).unique().item() == index
            below = torch.nextafter(cut.float(), torch.zeros(1))
            assert ensemble(torch.zeros(1, 3), below).unique().item() == index - 1


def test_one_member_is_called_when_all_agree_and_each_its_own_when_mixed():
    members = [Constant(0.0), Constant(1.0), Constant(2.0)]
    ensemble = route(members, [expert.intervals(EDIFFI) for expert in CONFIG_D])
    assert torch.equal(ensemble(torch.zeros(3, 2), torch.full((3,), 1.0)), torch.ones(3, 2))
    assert [member.num_calls for member in members] == [0, 1, 0]
    result = ensemble(torch.zeros(4, 2), torch.tensor([20.0, 0.01, 1.0, 30.0]))
    assert result[:, 0].tolist() == [2.0, 0.0, 1.0, 2.0]
    assert [member.num_calls for member in members] == [1, 2, 1]


def test_a_mixed_batch_gives_each_sample_its_own_condition_and_gradient():
    single = denoiser(seed=0)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sigma, cond = torch.tensor([5.0, 0.1, 2.0, 0.2]), {"vector": torch.arange(4.0)}
    alone = bound(single, cond)
    ensemble = route([alone, alone], [expert.intervals(EDIFFI) for expert in PARTITIONS["halves"]])
    torch.testing.assert_close(ensemble(x, sigma), alone(x, sigma))
    gradients = [torch.autograd.grad(denoise(x, sigma).square().sum(), x)[0] for denoise in (ensemble, alone)]
    torch.testing.assert_close(*gradients)


def test_the_ensemble_of_copies_has_as_many_switches_as_cuts():
    members = [Constant(float(index)) for index in range(3)]
    ensemble = route(members, [expert.intervals(EDIFFI) for expert in CONFIG_D])
    visited = [ensemble(torch.zeros(1, 1), sigma[None]).item() for sigma in karras(25, 0.002, 80.0, rho=6.0)[:-1]]
    assert visited == sorted(visited, reverse=True) and set(visited) == {0.0, 1.0, 2.0}
    assert [visited.count(index) for index in (0.0, 1.0, 2.0)] == [5, 11, 9]


def test_members_and_intervals_must_match():
    with pytest.raises(ValueError, match="members"):
        route([Constant(0.0)], [[(0.0, 1.0)], [(1.0, math.inf)]])


# Boundaries in other units


DISCRETE = NOISES["discrete"]


@pytest.mark.parametrize("level, index", [(1, 0), (1, 1), (2, 1), (3, 7)])
def test_the_same_cut_from_each_unit(level, index):
    """A node of a chain of 1000 steps, and its cuts as steps, sigma, flow time and quantiles."""
    node = Expert(node=[level, index]).intervals(DISCRETE)
    ((low, high),) = node
    steps = [round(1000 * number / 2**level) for number in (index, index + 1)]
    open_ends = [low or None, None if math.isinf(high) else high]
    given = {
        "quantile": [index / 2**level, (index + 1) / 2**level],
        "t": steps,
        "sigma": open_ends,
        "flow_t": [None if end is None else end / (1 + end) for end in open_ends],
    }
    for unit, ends in given.items():
        assert Expert(interval={unit: ends}).intervals(DISCRETE) == [pytest.approx((low, high), rel=1e-12)], unit
    assert Expert(interval={"t": steps}).restrict(DISCRETE).mass == pytest.approx(2.0**-level, abs=1e-12)


def test_intervals_and_nodes_tile_the_noise_together():
    expert = Expert(interval={"sigma": [0.7, None]})
    rest = Expert(exclude=[{"sigma": [0.7, None]}, [3, 0]])
    check_cover([member.intervals(EDIFFI) for member in (expert, rest, Expert(node=[3, 0]))])
    own = Expert(interval={"quantile": [0.25, 0.75]}).restrict(EDIFFI)
    assert own.mass == pytest.approx(0.5, abs=1e-12)
    assert Expert(interval={"flow_t": [0, 1]}).intervals(EDIFFI) == [(0.0, math.inf)]


@pytest.mark.parametrize(
    "interval, message",
    [
        ({"sigma": [2, 1]}, "low must be below high"),
        ({"sigma": [-1, 1]}, "goes from 0 on"),
        ({"quantile": [0.5, 1.5]}, "goes from 0 to 1"),
        ({"flow_t": [None, None], "t": [0, 1]}, "one of sigma, t, flow_t, quantile"),
        ({"snr": [0, 1]}, "one of sigma, t, flow_t, quantile"),
        ({"sigma": [0.1]}, "two numbers"),
        ({"sigma": ["a", 1]}, "two numbers"),
        ({"sigma": [float("nan"), 1]}, "two numbers"),
        ({}, "one of sigma, t, flow_t, quantile"),
    ],
)
def test_intervals_that_are_none_are_refused_by_key(interval, message):
    with pytest.raises(UserError, match=rf"^expert\.interval: .*{message}"):
        Expert(interval=interval)
    with pytest.raises(UserError, match=rf"^expert\.exclude: .*{message}"):
        Expert(exclude=[interval])


def test_steps_are_those_of_a_chain():
    with pytest.raises(UserError, match="no steps; give sigma"):
        Expert(interval={"t": [0, 500]}).intervals(EDIFFI)
    for ends in ([0.5, 500], [0, 1001]):
        with pytest.raises(UserError, match="a whole step, from 0 to 1000"):
            Expert(interval={"t": ends}).intervals(DISCRETE)
    with pytest.raises(UserError, match=r"expert\.node, expert\.interval"):
        Expert(node=[1, 1], interval={"t": [0, 500]})
