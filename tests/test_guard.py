"""The guard: a step without finite gradients changes nothing, in weights, in the optimizer and in buffers."""

import pytest
import torch
from torch import nn

from ldm.training.guard import Guard
from ldm.training.optim import adam, adamw


def step(network: nn.Module, guard: Guard, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    optimizer.zero_grad()
    network(x).square().mean().backward()
    guard.judge(torch.nn.utils.get_total_norm([p.grad for p in network.parameters()]), optimizer)
    optimizer.step()
    guard.settle()


@pytest.mark.parametrize("make", [adam, adamw])
@pytest.mark.parametrize("fused", [True, False])
def test_bad_steps_are_as_if_they_had_not_been(make, fused):
    good = [torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    bad = torch.full((4, 3), float("nan"))
    results = []
    for inputs in (good, [good[0], bad, bad, good[1], bad, good[2]]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        guard, optimizer = Guard(network), make(lr=1e-2, fused=fused)(network)
        for x in inputs:
            step(network, guard, optimizer, x)
        moments = [value for state in optimizer.state.values() for value in state.values()]
        results.append([*network.state_dict().values(), *moments])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert guard.counts() == (3, 2) and guard.counts() == (3, 0)


def test_the_count_goes_on_where_it_was():
    network = nn.Linear(3, 1)
    guard, optimizer = Guard(network), adam(lr=1e-2)(network)
    step(network, guard, optimizer, torch.full((4, 3), float("inf")))
    other = Guard(network)
    other.load_state_dict(guard.state_dict())
    step(network, other, optimizer, torch.full((4, 3), float("inf")))
    assert other.counts() == (2, 2)
