"""Muon: its steps are the published ones, for matrices and kernels, and one optimizer holds both kinds of state."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ldm.training.guard import Guard
from ldm.training.muon import Muon, muon, orthogonal
from ldm.training.optim import load_state


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 16, 6), nn.Embedding(4, 3)
    )


def grads(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(memory_format=torch.preserve_format)


def values(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("shape", [(6, 6), (4, 16), (16, 4)])
def test_singular_values_become_about_one_and_the_directions_stay(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    made = orthogonal(x, 8, torch.float32)
    inner = u.T @ made @ vh.T
    assert torch.allclose(inner, torch.diag(inner.diagonal()), atol=1e-4)
    assert inner.diagonal().min() > 0.6 and inner.diagonal().max() < 1.25


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon to compare with")
def test_matrices_move_as_by_torchs_own_muon_on_a_quadratic():
    torch.manual_seed(1)
    start, target = torch.randn(6, 10), torch.randn(6, 10)
    ours, theirs = nn.Linear(10, 6, bias=False), nn.Parameter(start.clone())
    ours.weight.data = start.clone()
    one = muon(lr=0.02, weight_decay=0.1)(ours)
    one._emulated = False  # torch's is in bf16 on any processor
    other = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(20):
        ours.weight.grad, theirs.grad = ours.weight.detach() - target, theirs.detach() - target
        one.step()
        other.step()
    assert torch.allclose(ours.weight, theirs, atol=1e-3)
    assert (ours.weight - target).norm() < 0.95 * (start - target).norm()  # 20 steps of about .0126 each way


def test_a_kernel_moves_as_its_matrix_and_all_else_as_by_adamw():
    module, linear = network(), nn.Linear(18, 8, bias=False)
    linear.weight.data = module[0].weight.detach().flatten(1).clone()
    maps = ("0.weight", "3.weight")
    rest = nn.ParameterList([p for n, p in copy.deepcopy(module).named_parameters() if n not in maps])
    one, two = muon(lr=0.01)(module), muon(lr=0.01)(linear)
    decayed = [p for p in rest if p.ndim >= 2]
    plain = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0}],
        lr=0.01, fused=True,
    )  # fmt: skip
    for seed in range(3):
        grads(module, seed)
        linear.weight.grad = module[0].weight.grad.flatten(1).clone()
        own = [p for n, p in module.named_parameters() if n not in maps]
        for a, b in zip(rest, own, strict=True):
            a.grad = b.grad.clone()
        for optimizer in (one, two, plain):
            optimizer.step()
    assert torch.equal(module[0].weight.flatten(1), linear.weight)
    assert same([p.detach() for p in rest], [p.detach() for p in own])


def test_its_state_is_saved_and_goes_on_bit_for_bit_in_another_memory_layout():
    straight = network()
    optimizer = muon(lr=0.01)(straight)
    for seed in range(3):
        grads(straight, seed)
        optimizer.step()
    resumed = copy.deepcopy(straight)
    resumed[0].weight.data = resumed[0].weight.data.to(memory_format=torch.channels_last)
    other = muon(lr=0.01)(resumed)
    load_state(other, copy.deepcopy(optimizer.state_dict()))
    assert other.state[resumed[0].weight]["momentum_buffer"].stride() == resumed[0].weight.stride()
    for seed in range(3, 6):
        for module, own in ((straight, optimizer), (resumed, other)):
            grads(module, seed)
            own.step()
    assert same(values(straight), values(resumed))


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_the_guard_rejects_changes_nothing(fused):
    module = network()
    optimizer, guard = muon(lr=0.01, fused=fused)(module), Guard(module)
    for bad in (False, True, False):
        grads(module, 0)
        if bad:
            module[0].weight.grad[0, 0, 0, 0] = torch.nan
            module[1].weight.grad[0] = torch.nan
        before, state = values(module), copy.deepcopy(optimizer.state_dict()["state"])
        norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters()])
        guard.judge(norm, optimizer)
        optimizer.step()
        guard.settle()
        assert same(before, values(module)) == bad
        if bad:
            now = optimizer.state_dict()["state"]
            assert all(torch.equal(value, now[place][name]) for place in state for name, value in state[place].items())
    assert guard.counts()[0] == 1


def test_what_is_no_rate_is_named():
    for words, said in (({"lr": -1.0}, "lr"), ({"lr": 1.0, "momentum": 1.0}, "momentum"),
                        ({"lr": 1.0, "num_iterations": 0}, "num_iterations"),
                        ({"lr": 1.0, "weight_decay": -1}, "weight_decay")):  # fmt: skip
        with pytest.raises(ValueError, match=rf"optimizer\.{said}="):
            muon(**words)


def test_a_frozen_network_but_for_one_kind_of_weight_trains():
    for trained in ("0.weight", "1.bias"):
        module = network()
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name == trained)
        optimizer = muon(lr=0.01)(module)
        assert isinstance(optimizer, Muon)
        grads(module, 0)
        before = values(module)
        optimizer.step()
        moved = [not torch.equal(a, b) for a, b in zip(before, values(module), strict=True)]
        assert moved == [name == trained for name, _ in module.named_parameters()]
