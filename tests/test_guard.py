"""The guard: a step without finite gradients changes nothing, in weights, in the optimizer and in buffers."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toys import assert_equal_runs, curve, same, state, tiny

from ldm.build import Parts
from ldm.config import compose
from ldm.training.diffusion import DiffusionTask
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


def norms(guard: Guard, values: list[float]) -> list[bool]:
    """Which steps of these gradient norms are accepted, by a weight that moves by 1 in each that is."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer, moved = torch.optim.SGD([weight], lr=1.0), []
    for value in values:
        before = weight.item()
        weight.grad = torch.ones(1)
        guard.judge(torch.tensor(value), optimizer)
        optimizer.step()
        guard.settle()
        moved.append(weight.item() != before)
    return moved


def test_a_spike_is_beyond_a_multiple_of_the_median_of_accepted_steps():
    guard = Guard(nn.Linear(1, 1), spike_ratio=4.0, spike_window=3)
    assert norms(guard, [1.0, 100.0, 3.0]) == [True] * 3  # the window is not full yet; its median is 3
    assert norms(guard, [12.5, 12.0, float("nan"), 48.5, 1.0, 12.0, 49.0]) == [
        False, True, False, False, True, True, False,
    ]  # fmt: skip
    assert guard.counts()[0] == 4
    assert norms(Guard(nn.Linear(1, 1)), [1.0, 1.0, 1.0, 1e9]) == [True] * 4


def test_the_median_goes_on_where_it_was():
    values = [1.0, 2.0, 9.0, 8.1, 7.9, 30.0, 2.0]
    whole = Guard(nn.Linear(1, 1), spike_ratio=4.0, spike_window=3)
    expected = norms(whole, values)
    for cut in range(len(values)):
        first = Guard(nn.Linear(1, 1), spike_ratio=4.0, spike_window=3)
        begun = norms(first, values[:cut])
        second = Guard(nn.Linear(1, 1), spike_ratio=4.0, spike_window=3)
        second.load_state_dict(first.state_dict())
        assert begun + norms(second, values[cut:]) == expected
        assert torch.equal(second.state_dict()["norms"], whole.state_dict()["norms"])


@pytest.mark.parametrize("values", [{"spike_ratio": 1.0}, {"spike_ratio": 4.0, "spike_window": 0}])
def test_values_without_sense_are_refused(values):
    with pytest.raises(ValueError, match=r"guard\.spike_(ratio|window)="):
        Guard(nn.Linear(1, 1), **values)


def test_a_run_skips_spikes_and_resumes_with_their_median(train_diffusion, monkeypatch):
    own = ("max_steps=6", "guard=spikes", "guard.spike_window=2", "guard.spike_ratio=50.0", "optimizer.lr=0.0")
    own += ("callback.checkpoint.every_steps=1", "callback.checkpoint.keep=9", "callback.validation.every_steps=1")
    original = DiffusionTask.training_step

    def spiky(task: DiffusionTask, batch: dict, batch_index: int) -> torch.Tensor:
        return original(task, batch, batch_index) * (1e4 if task.step == 3 else 1.0)

    monkeypatch.setattr(DiffusionTask, "training_step", spiky)
    whole = train_diffusion(*own, run="whole").folder
    assert curve(whole, "train/skipped_steps") == {1: 0, 2: 0, 3: 0, 4: 1, 5: 1, 6: 1}
    moments = [state(whole, step)["optimizer"]["state"] for step in (3, 4, 5)]
    assert same(moments[0], moments[1]) and not same(moments[1], moments[2])
    train_diffusion(*own[1:], "max_steps=2", run="parts")
    parts = train_diffusion(*own, run="parts").folder
    assert_equal_runs(whole, parts, 6)


def test_spikes_are_refused_where_gradients_are_scaled(tmp_path):
    task = Parts(compose("config", tiny("quickstart/autoencoder", tmp_path, "guard=spikes")))["task"]
    task._trainer = SimpleNamespace(precision="16-mixed")
    with pytest.raises(ValueError, match=r"guard=spikes with trainer\.precision=16-mixed"):
        task.configure_optimizers()
