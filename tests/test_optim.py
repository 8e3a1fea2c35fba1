"""Learning rates as factors of the step, and which parameters are decayed."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from ldm.training.optim import adam, adamw, constant, cosine, go_on_from, load_state
from ldm.training.schedule_free import ScheduleFree, ScheduleFreeAdamW


def test_constant_warms_up_linearly_and_stays():
    factor = constant(warmup_steps=4)
    assert [factor(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert constant()(0) == 1.0


def test_cosine_goes_from_1_to_the_final_factor_and_stays():
    factor = cosine(max_steps=110, warmup_steps=10, final_factor=0.1)
    assert factor(10) == 1.0
    assert factor(60) == pytest.approx(0.55)
    assert factor(110) == factor(500) == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(factor(step) for step in range(10, 130)))
    assert all(a < b for a, b in itertools.pairwise(factor(step) for step in range(11)))


def test_a_warm_up_starts_where_it_is_told():
    published = cosine(max_steps=50_000, warmup_steps=1000, final_factor=0.001, start_factor=0.01)  # of inpainting_big
    places = {0: 0.001, 500: 0.0505, 1000: 0.1, 25_500: 0.05005, 50_000: 1e-4, 360_000: 1e-4}
    assert [0.1 * published(step) for step in places] == pytest.approx(list(places.values()))
    line = constant(warmup_steps=10, start_factor=0.5)
    assert [line(step) for step in (0, 5, 10, 11)] == pytest.approx([0.5, 0.75, 1, 1])
    assert constant(start_factor=0.5)(0) == 1
    with pytest.raises(ValueError, match=r"lr\.start_factor=2"):
        constant(1, 2.0)


def test_cosine_is_half_a_cosine():
    factor = cosine(max_steps=100)
    for step in range(101):
        assert factor(step) == pytest.approx(0.5 * (1 + math.cos(math.pi * step / 100)))


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match=r"max_steps=10 must exceed lr\.warmup_steps=10"):
        cosine(max_steps=10, warmup_steps=10)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(3, 2))
    layers[3].bias.requires_grad_(False)
    return layers


def test_vectors_are_decayed_where_that_is_asked_for_and_keep_their_places():
    one, other = (
        adamw(lr=0.1, weight_decay=0.5, decay_vectors=all_of_them)(network()) for all_of_them in (False, True)
    )
    assert {group["weight_decay"] for group in other.param_groups} == {0.5}
    shapes = [[[p.shape for p in group["params"]] for group in o.param_groups] for o in (one, other)]
    assert shapes[0] == shapes[1]  # so that one's state is the other's


def test_decay_is_on_matrices_and_kernels_only():
    layers = network()
    optimizer = adamw(lr=0.1, weight_decay=0.5)(layers)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: decays.get(id(parameter)) for name, parameter in layers.named_parameters()}
    assert named == {"0.weight": 0.5, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "3.weight": 0.5, "3.bias": None}


def test_the_numbers_reach_the_optimizers():
    one = adamw(lr=0.1, betas=[0.8, 0.9], eps=1e-5)(network())
    two = adam(lr=0.2, fused=False)(network())
    for group in one.param_groups:
        assert (group["lr"], group["betas"], group["eps"], group["fused"]) == (0.1, (0.8, 0.9), 1e-5, True)
    (group,) = two.param_groups
    assert (group["lr"], group["betas"], group["fused"]) == (0.2, (0.5, 0.9), False)
    assert group["weight_decay"] == 0 and len(group["params"]) == 5


@pytest.mark.parametrize("make", [adam, adamw])
def test_one_fused_kernel_takes_the_same_steps_as_many(make):
    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    results = []
    for fused in (True, False):
        layers = network()
        optimizer = make(lr=1e-2, fused=fused)(layers)
        for _ in range(5):
            optimizer.zero_grad()
            layers(x).square().mean().backward()
            optimizer.step()
        results.append(torch.cat([parameter.detach().flatten() for parameter in layers.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


LAYOUTS = [(torch.channels_last, torch.contiguous_format), (torch.contiguous_format, torch.channels_last)]


@pytest.mark.parametrize("layouts", LAYOUTS)
def test_a_state_saved_in_another_layout_goes_on_the_same(layouts):
    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1))

    def step(layers: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        layers(x).square().mean().backward()
        optimizer.step()

    networks = [network().to(memory_format=layout) for layout in layouts]
    optimizers = [adamw(lr=1e-2)(layers) for layers in networks]
    for _ in range(3):
        step(networks[0], optimizers[0])
    networks[1].load_state_dict(networks[0].state_dict())
    load_state(optimizers[1], copy.deepcopy(optimizers[0].state_dict()))
    for layers, optimizer in zip(networks, optimizers, strict=True):
        step(layers, optimizer)
    one, other = (layers[0].weight for layers in networks)
    assert one.stride() != other.stride()
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("betas", [[0.9], [0.9, 0.99, 0.999], [0.9, 1.0], [-0.1, 0.9]])
def test_betas_that_are_none_are_named_before_there_are_parameters(betas):
    for make in (adam, adamw):
        with pytest.raises(ValueError, match=r"^optimizer\.betas="):
            make(lr=1e-3, betas=betas)
    with pytest.raises(ValueError, match=r"^optimizer\.weight_decay=-1"):
        adamw(lr=1e-3, weight_decay=-1)


@pytest.mark.parametrize("free", [False, True])
def test_a_state_that_is_gone_on_from_brings_moments_and_no_settings(free: bool):
    def made(lr: float, weight_decay: float) -> torch.optim.Optimizer:
        torch.manual_seed(0)
        build = ScheduleFree(lr, weight_decay=weight_decay) if free else adamw(lr, weight_decay=weight_decay)
        optimizer = build(nn.Linear(3, 2))
        for group in optimizer.param_groups:
            group["base_lr"] = lr
        return optimizer

    parent, child = made(0.1, 0.5), made(0.01, 0.0)
    for group in parent.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    parent.step()
    go_on_from(child, copy.deepcopy(parent.state_dict()))
    for group, before in zip(child.param_groups, parent.param_groups, strict=True):
        assert (group["lr"], group["base_lr"], group["weight_decay"]) == (0.01, 0.01, 0.0)
        assert [group.get(key) for key in ScheduleFreeAdamW.COUNTS] == [
            before.get(key) for key in ScheduleFreeAdamW.COUNTS
        ]
    held, own = parent.state_dict()["state"], child.state_dict()["state"]
    assert all(torch.equal(held[place][name], own[place][name]) for place in held for name in held[place])


@pytest.mark.parametrize("free", [False, True])
def test_a_state_of_another_kind_of_optimizer_is_refused(free: bool):
    built = [build(nn.Linear(3, 2)) for build in (adamw(0.1), ScheduleFree(0.1))]
    parent, child = built if free else reversed(built)
    with pytest.raises(ValueError, match="another kind of optimizer"):
        go_on_from(child, parent.state_dict())
