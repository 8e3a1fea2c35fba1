"""EMA: a weighted mean of the past, swapped in and out without a trace, resumed exactly."""

import copy

import pytest
import torch
from torch import nn

from ldm.checkpoint.posthoc_ema import exponent
from ldm.training.ema import EMA, PowerEMA


def model() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    network[2].requires_grad_(False)
    return network


def disturb(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator))


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.5, 0.9999])
def test_the_average_is_the_recursion_with_its_warm_up(decay):
    network = model()
    ema = EMA(network, decay)
    expected = network[0].weight.detach().double().clone()
    for n in range(1, 13):
        disturb(network, n)
        ema.update()
        d = min(decay, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * network[0].weight.detach().double()
    torch.testing.assert_close(ema.weights()["ema"]["0.weight"].double(), expected, rtol=1e-5, atol=1e-6)
    assert ema.num_updates == 12


def test_decay_0_is_the_model_itself():
    network = model()
    ema = EMA(network, 0.0)
    disturb(network, 1)
    ema.update()
    assert same(ema.weights()["ema"], network.state_dict())


def test_a_model_that_does_not_change_is_its_own_average():
    network = model()
    ema = EMA(network, 0.9)
    for _ in range(5):
        ema.update()
    assert same(ema.weights()["ema"], network.state_dict())


def test_buffers_and_frozen_parameters_are_the_models():
    network = model()
    ema = EMA(network, 0.9)
    network[1].running_mean.fill_(7.0)
    with torch.no_grad():
        network[2].weight.fill_(3.0)
    ema.update()
    weights = ema.weights()["ema"]
    assert weights.keys() == network.state_dict().keys()
    assert (weights["1.running_mean"] == 7).all() and (weights["2.weight"] == 3).all()


def test_swapping_computes_with_the_averages_and_leaves_no_trace():
    network = model().eval()
    ema = EMA(network, 0.9)
    disturb(network, 1)
    ema.update()
    reference = copy.deepcopy(network)
    reference.load_state_dict(ema.weights()["ema"])
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(3))
    before, output = copy.deepcopy(network.state_dict()), network(x)
    pointers = [parameter.data_ptr() for parameter in network.parameters()]
    with ema.swapped():
        assert torch.equal(network(x), reference(x))
        assert not torch.equal(network(x), output)
    assert same(network.state_dict(), before)
    assert [parameter.data_ptr() for parameter in network.parameters()] == pointers, "the optimizer holds these"


def test_a_model_whose_layout_changes_goes_on_being_averaged():
    torch.manual_seed(0)
    network, plain = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 3)
    plain.load_state_dict(network.state_dict())
    changing, steady = EMA(network, 0.9), EMA(plain, 0.9)
    for n in range(4):
        if n == 2:
            network.to(memory_format=torch.channels_last)  # new memory: the average's buffer holds the old one
        for ema in (changing, steady):
            disturb(ema.module, n)
            ema.update()
    assert network.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(changing.weights()["ema"], steady.weights()["ema"], rtol=1e-6, atol=1e-7)


def test_an_error_inside_the_swap_restores_the_model():
    network = model()
    ema = EMA(network, 0.9)
    disturb(network, 1)
    ema.update()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(RuntimeError, match="in the middle"), ema.swapped():
        raise RuntimeError("in the middle")
    assert same(network.state_dict(), before)


def test_resumed_is_uninterrupted_bit_for_bit():
    def run(ema: EMA, steps: range) -> None:
        for step in steps:
            disturb(ema.module, step)
            ema.update()

    straight = EMA(model(), 0.99)
    run(straight, range(10))
    first = EMA(model(), 0.99)
    run(first, range(4))
    second = EMA(model(), 0.99)
    second.module.load_state_dict(first.module.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(second, range(4, 10))
    assert same(second.weights()["ema"], straight.weights()["ema"])
    assert second.num_updates == straight.num_updates


def test_a_loaded_state_is_a_copy():
    ema, state = EMA(model(), 0.5), EMA(model(), 0.5).state_dict()
    ema.load_state_dict(state)
    kept = {name: average.clone() for name, average in state["averages"].items()}
    disturb(ema.module, 1)
    ema.update()
    assert same(state["averages"], kept)


def test_averages_are_fp32_whatever_the_model_is():
    network = nn.Linear(2, 2).to(torch.bfloat16)
    ema = EMA(network, 0.999)
    ema.update()
    assert ema.weights()["ema"]["weight"].dtype == torch.float32
    with ema.swapped():
        assert network.weight.dtype == torch.bfloat16


def test_another_models_average_is_refused():
    with pytest.raises(ValueError, match="other parameters"):
        EMA(model(), 0.9).load_state_dict(EMA(nn.Linear(2, 2), 0.9).state_dict())


def test_several_decays_are_each_as_if_alone():
    network = model()
    several, alone = EMA(network, [0.5, 0.999]), [EMA(network, 0.5), EMA(network, 0.999)]
    for n in range(20):
        disturb(network, n)
        for ema in (several, *alone):
            ema.update()
    assert several.kinds == ("ema", "ema_0.999")
    for kind, ema in zip(several.kinds, alone, strict=True):
        assert same(several.weights()[kind], ema.weights()["ema"])


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_a_power_profile_weighs_each_update_by_a_power_of_its_number(sigma_rel):
    network = model()
    ema, seen = PowerEMA(network, [sigma_rel]), []
    for n in range(30):
        disturb(network, n)
        ema.update()
        seen.append(network[0].weight.detach().double().clone())
    ends = (torch.arange(31, dtype=torch.float64) / 30) ** (exponent(sigma_rel) + 1)
    expected = (ends.diff()[:, None, None] * torch.stack(seen)).sum(0)  # the start has no part in it
    torch.testing.assert_close(ema.weights()["ema"]["0.weight"].double(), expected, rtol=1e-5, atol=1e-5)


def test_profiles_resume_together_and_other_profiles_are_refused():
    straight, first = PowerEMA(model()), PowerEMA(model())
    for n in range(8):
        disturb(straight.module, n)
        straight.update()
        if n < 3:
            disturb(first.module, n)
            first.update()
    second = PowerEMA(model())
    second.module.load_state_dict(first.module.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for n in range(3, 8):
        disturb(second.module, n)
        second.update()
    for kind in ("ema", "ema_0.1"):
        assert same(second.weights()[kind], straight.weights()[kind])
    for other in (PowerEMA(model(), [0.05]), PowerEMA(model(), [0.05, 0.2]), EMA(model())):
        with pytest.raises(ValueError, match="other profiles"):
            other.load_state_dict(first.state_dict())


def test_other_profiles_start_from_the_first():
    parent = EMA(model(), 0.9)
    disturb(parent.module, 1)
    parent.update()
    child = PowerEMA(model(), [0.05, 0.1, 0.2])
    child.start_from(parent.state_dict())
    for kind in child.kinds:
        assert same(child.averages()[kind], parent.averages()["ema"])
    disturb(child.module, 2)
    child.update()
    assert not same(child.averages()["ema"], child.averages()["ema_0.2"]) and child.num_updates == 2


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"sigma_rels": []}, "sigma_rels"),
        ({"sigma_rels": [0.1, 0.1]}, "sigma_rels"),
        ({"sigma_rels": [0.5]}, "relative length"),
        ({"sigma_rels": [0.0]}, "relative length"),
        ({"snapshot_every_steps": 0}, "snapshot_every_steps"),
    ],
)
def test_profiles_that_are_none_are_refused(settings, key):
    with pytest.raises(ValueError, match=key):
        PowerEMA(model(), **settings)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, [], [0.5, 0.5], [0.5, 1.0]])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match=r"ema\.decay"):
        EMA(model(), decay)
