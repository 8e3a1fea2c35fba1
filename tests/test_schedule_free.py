"""Schedule-free AdamW: the published recursion, its average kept as any other, and the two only together."""

import copy

import pytest
import torch
from torch import Tensor, nn
from toys import train

from ldm.checkpoint import weights
from ldm.config import overriding
from ldm.training.ema import EMA
from ldm.training.optim import constant, load_state
from ldm.training.schedule_free import ScheduleFree, average


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(5, 3)


def loss(own: nn.Module) -> Tensor:
    target = torch.linspace(-1, 1, own.weight.numel()).view_as(own.weight)
    return 0.5 * ((own.weight - target) ** 2).sum() + 0.5 * (own.bias**2).sum()


def published(start: Tensor, target: Tensor, lr: float, decay: float, warmup: int, steps: int) -> tuple[Tensor, Tensor]:
    """(y, x) after `steps` of algorithm 1 with AdamW's moments and weight decay at y, x by its own recursion, fp64."""
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    z = x = y = start.double()
    squares, total, factor = torch.zeros_like(z), 0.0, constant(warmup)
    for step in range(steps):
        grad, rate = y - target.double(), lr * factor(step)
        squares = beta2 * squares + (1 - beta2) * grad**2
        direction = grad / ((squares / (1 - beta2 ** (step + 1))).sqrt() + eps) + decay * y
        z = z - rate * direction
        total += rate**2
        share = rate**2 / total
        x = (1 - share) * x + share * z
        y = (1 - beta1) * z + beta1 * x
    return y, x


@pytest.mark.parametrize(("warmup", "decay"), [(0, 0.0), (5, 0.1)])
def test_weights_and_their_average_are_those_of_the_paper(warmup, decay):
    own = module()
    start, target = own.weight.detach().clone(), torch.linspace(-1, 1, own.weight.numel()).view_as(own.weight)
    free, schedule = ScheduleFree(lr=0.05, weight_decay=decay), constant(warmup)
    optimizer, ema = free(own), average(free, schedule)(own)
    for step in range(40):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * schedule(step)
        optimizer.zero_grad()
        loss(own).backward()
        optimizer.step()
        ema.update()
    y, x = published(start, target, 0.05, decay, warmup, 40)
    assert torch.allclose(own.weight.double(), y, atol=1e-5)
    assert torch.allclose(ema.averages()["ema"]["weight"].double(), x, atol=1e-5)
    assert not torch.allclose(x, y, atol=1e-3)
    with ema.swapped():
        assert torch.allclose(own.weight.double(), x, atol=1e-5)


def test_it_goes_on_bit_for_bit_with_its_average():
    one = module()
    free = ScheduleFree(lr=0.05)
    optimizer, ema = free(one), average(free, constant(3))(one)

    def step(own, by, averaged):
        by.zero_grad()
        loss(own).backward()
        by.step()
        averaged.update()

    for _ in range(4):
        step(one, optimizer, ema)
    two = copy.deepcopy(one)
    other, later = free(two), average(free, constant(3))(two)
    load_state(other, copy.deepcopy(optimizer.state_dict()))
    later.load_state_dict(copy.deepcopy(ema.state_dict()))
    for _ in range(4):
        step(one, optimizer, ema)
        step(two, other, later)
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(ema.averages()["ema"]["weight"], later.averages()["ema"]["weight"])


def test_its_state_lies_as_the_weights_do_and_is_no_larger_than_adamws():
    kernel = nn.Conv2d(4, 3, 3, bias=False).to(memory_format=torch.channels_last)
    optimizer = ScheduleFree(lr=0.1)(kernel)
    kernel.weight.grad = torch.randn_like(kernel.weight)
    optimizer.step()
    (state,) = optimizer.state.values()
    assert {name: value.stride() for name, value in state.items()} == dict.fromkeys(
        ("z", "exp_avg_sq"), kernel.weight.stride()
    )


def test_a_step_without_gradients_changes_nothing():
    own = module()
    optimizer = ScheduleFree(lr=0.05)(own)
    loss(own).backward()
    optimizer.step()
    before, state = own.weight.detach().clone(), copy.deepcopy(optimizer.state_dict())
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(own.weight, before)
    assert [group["num_steps"] for group in optimizer.param_groups] == [g["num_steps"] for g in state["param_groups"]]


def test_it_goes_with_its_own_average_alone():
    free, own = ScheduleFree(lr=0.1), module()
    free.check(average(free, constant())(own))
    for other in (None, EMA(own), average(ScheduleFree(lr=0.1), constant())(own)):
        with pytest.raises(ValueError, match="set ema=schedule_free"):
            free.check(other)


@pytest.mark.parametrize("words", [["optimizer=schedule_free", "ema=default"], ["ema=schedule_free"]])
def test_a_run_with_one_of_the_two_is_refused_before_its_folder_is_made(words, tmp_path):
    with pytest.raises(ValueError, match=r"schedule_free|ScheduleFree"):
        train("quickstart/autoencoder", tmp_path, *words)
    assert not list(tmp_path.iterdir())


def test_a_branch_with_a_fresh_optimizer_begins_its_average_anew(diffusion, tmp_path):
    run = train(
        "quickstart/diffusion",
        tmp_path,
        f"branch={diffusion.folder}",
        "optimizer=schedule_free",
        "ema=schedule_free",
        "max_steps=1",
    )
    one, other = (weights.load(run.folder, kind).state for kind in ("ema", "raw"))
    assert all(torch.equal(one[name], other[name]) for name in one), "the average of one iterate is that iterate"


def test_a_branch_that_keeps_the_optimizer_says_where_its_average_cannot_follow(tmp_path, caplog):
    free = ["optimizer=schedule_free", "ema=schedule_free", "lr=constant", "max_steps=3"]
    parent = train("quickstart/autoencoder", tmp_path, *free, "lr.warmup_steps=2", run="parent")
    for number, (words, said) in enumerate((
        ([], False), (["optimizer.lr=1e-5"], True), (["lr.warmup_steps=0"], True), (["branch_optimizer=fresh"], False)
    )):  # fmt: skip
        caplog.clear()
        kept = [f"branch={parent.folder}", "branch_optimizer=keep", "lr.warmup_steps=2"]
        train("quickstart/autoencoder", tmp_path, *overriding([*free, *kept, *words]), run=f"branch-{number}")
        assert ("the parent's steps had other rates" in caplog.text) is said, words
