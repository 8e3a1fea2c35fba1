"""The learned log-variance: what it converges to, that only training has it, and resuming and branching with it."""

import csv
import math
from collections.abc import Callable

import pytest
import torch
from toys import assert_equal_runs, curve, same, state

from ldm.checkpoint import weights
from ldm.diffusion.log_variance import LogVariance, uncertain
from ldm.run import Run

Train = Callable[..., Run]
LEARNED = "log_variance=fourier"


def test_it_starts_at_zero_where_the_loss_is_the_plain_one():
    sigma, losses = torch.logspace(-2, 2, 9), torch.rand(9)
    assert torch.equal(uncertain(losses, LogVariance()(sigma)), losses)


def test_it_converges_to_the_logarithm_of_the_mean_loss_at_each_level():
    generator = torch.Generator().manual_seed(0)

    def log_mean(ln_sigma: torch.Tensor) -> torch.Tensor:
        return 2 * ln_sigma.sin() - 1

    log_variance = LogVariance()
    optimizer = torch.optim.Adam(log_variance.parameters(), lr=0.02)
    for step in range(1500):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 1500)
        ln_sigma = 6 * torch.rand(256, generator=generator) - 3
        losses = log_mean(ln_sigma).exp() * torch.randn(256, generator=generator).square()
        optimizer.zero_grad()
        uncertain(losses, log_variance(ln_sigma.exp())).mean().backward()
        optimizer.step()
    ln_sigma = torch.linspace(-2.8, 2.8, 50)
    assert (log_variance(ln_sigma.exp()) - log_mean(ln_sigma)).abs().max() < 0.25


def test_the_denoisers_gradient_is_divided_by_the_learned_scale():
    losses = torch.rand(5, requires_grad=True)
    u = torch.linspace(-2, 2, 5)
    uncertain(losses, u).sum().backward()
    torch.testing.assert_close(losses.grad, (-u).exp())


def test_it_is_fp32_under_autocast():
    log_variance = LogVariance()
    torch.nn.init.normal_(log_variance.weight, generator=torch.Generator().manual_seed(0))
    sigma = torch.logspace(-2, 2, 9)
    with torch.autocast("cpu", torch.bfloat16):
        u = log_variance(sigma)
    assert u.dtype == torch.float32 and torch.equal(u, log_variance(sigma))


def test_no_channels_are_refused():
    with pytest.raises(ValueError, match=r"log_variance\.channels"):
        LogVariance(0)


def test_a_run_learns_it_beside_the_model_and_writes_its_curve(train_diffusion: Train):
    run = train_diffusion(LEARNED, "callback.panels.every_steps=1")
    learned = state(run.folder, 2)["trained"]["log_variance.weight"]
    assert learned.abs().sum() > 0
    assert not any("log_variance" in name for name in weights.load(run.folder).state)
    assert not any("log_variance" in name for name in weights.load(run.folder, "raw").state)
    with (run.folder / "samples" / "step_00000002_log_variance.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["ln sigma", "log-variance"]
    log_variance = LogVariance()
    log_variance.load_state_dict({"weight": learned})
    ln_sigma, u = torch.tensor([[float(x), float(y)] for x, y in rows]).unbind(1)
    torch.testing.assert_close(u, log_variance(ln_sigma.exp()).detach())
    mean, std = run.tree["noise"]["mean"], run.tree["noise"]["std"]
    assert ln_sigma[0].item() == pytest.approx(mean - 3.0902 * std, abs=1e-3) and (ln_sigma.diff() > 0).all()
    assert (run.folder / "samples" / "step_00000002_log_variance.png").read_bytes()[:4] == b"\x89PNG"


def test_the_first_step_is_the_one_without_it(train_diffusion: Train):
    plain, learned = train_diffusion(run="plain"), train_diffusion(LEARNED, run="learned")
    losses = curve(plain.folder), curve(learned.folder)
    assert losses[0][1] == losses[1][1] == curve(learned.folder, "train/uncertain_loss")[1]
    assert math.isfinite(losses[1][2])


def test_it_resumes_bit_for_bit(train_diffusion: Train):
    whole = train_diffusion(LEARNED, "max_steps=4", "callback.validation.every_steps=2", run="whole")
    for steps in (2, 4):
        own = (LEARNED, f"max_steps={steps}", "callback.validation.every_steps=2")
        parts = train_diffusion(*own, run="parts")
    assert_equal_runs(whole.folder, parts.folder, step=4)


def test_experts_take_it_leave_it_and_begin_it(train_diffusion: Train, diffusion: Run):
    parent = train_diffusion(LEARNED, run="parent")
    still = ("optimizer.lr=0.0", "max_steps=1", "expert.node=[1,1]")
    parents = state(parent.folder, 2)["trained"]
    taken = train_diffusion(LEARNED, *still, f"branch={parent.folder}", run="taken")
    assert same(state(taken.folder, 1)["trained"], parents)
    left = train_diffusion(*still, f"branch={parent.folder}", run="left")
    model = {name: value for name, value in parents.items() if not name.startswith("log_variance")}
    assert same(state(left.folder, 1)["trained"], model)
    with pytest.raises(ValueError, match=r"branch_optimizer=keep: .* other parameters"):
        train_diffusion(*still, f"branch={parent.folder}", "branch_optimizer=keep", run="kept")
    begun = train_diffusion(LEARNED, *still, f"branch={diffusion.folder}", run="begun")
    assert state(begun.folder, 1)["trained"]["log_variance.weight"].abs().sum() == 0
