"""Distillation into consistency functions: errors, gaps, where gradients stop, and runs from training to files."""

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from toys import assert_equal_runs, curve, train

from ldm.config import overriding
from ldm.diffusion.consistency import MOST_HALVINGS, Consistency
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.experts import Expert
from ldm.diffusion.loss import diffusion_loss, squared
from ldm.diffusion.noise import LogNormal
from ldm.diffusion.objective import denoising
from ldm.diffusion.precond import EDM, X0, Eps, Flow, Regression, V
from ldm.diffusion.schedule import VE, scaled_linear
from ldm.diffusion.schedule import Flow as FlowSchedule
from ldm.diffusion.weighting import Native
from ldm.run import Run
from sample import main

PRECOND = EDM(VE(), sigma_data=1.0)
SIGMA = torch.tensor([0.01, 0.3, 2.0, 20.0])
X0S, NOISE = torch.randn(2, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0)).unbind()


def objective(**keys) -> Consistency:
    return Consistency(PRECOND, Expert(), **{"max_steps": 100, "every_steps": 10, **keys})


class Network(nn.Module):
    """A convolution told of the noise, after dropout."""

    factor = 1

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.noise, self.outer = nn.Conv2d(2, 8, 3, padding=1), nn.Linear(1, 8), nn.Conv2d(8, 2, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, c_noise):
        return self.outer(self.dropout(torch.tanh(self.inner(x) + self.noise(c_noise[:, None])[..., None, None])))


# Errors


@pytest.mark.parametrize("step", [0, 35, 1000])
def test_the_consistency_function_of_a_single_image_has_no_errors(step):
    image = X0S[:1]
    errors = objective()(lambda x, sigma, cond: image.expand_as(x), image.expand_as(X0S), SIGMA, NOISE, {}, step)
    assert torch.equal(errors, torch.zeros_like(X0S))


def test_gaps_shrink_by_a_factor_a_stage_as_published():
    own = objective(factor=2.0)
    for step, stage in ((0, 1), (9, 1), (10, 2), (75, 8)):
        n = 1 + 8 / (1 + SIGMA.double().exp())
        lower = (SIGMA.double() * (1 - n / 2**stage)).clamp(min=0)  # r of arXiv:2406.14548
        torch.testing.assert_close(SIGMA.double() * (1 - own.gap(SIGMA, step).double()), lower, rtol=1e-5, atol=1e-7)
    assert (own.gap(SIGMA, 0) <= 1).all() and (own.gap(SIGMA, 0)[:2] == 1).all() and (own.gap(SIGMA, 75) > 0).all()


@pytest.mark.parametrize("factor", [1.5, 2.0, 4.0])
def test_in_as_many_stages_as_are_allowed_the_levels_are_two(factor: float):
    most = int(MOST_HALVINGS / math.log2(factor))
    own = objective(max_steps=10 * most, factor=factor)
    assert (SIGMA * (1 - own.gap(SIGMA, 10 * most - 1)) < SIGMA).all()


def test_a_whole_gap_is_denoising_and_a_smaller_one_is_not():
    denoiser = Denoiser(Network(), PRECOND)
    given = (denoiser, X0S, SIGMA, NOISE, {})
    assert torch.equal(objective(k=300.0, b=0.0)(*given, 0), denoising(*given))
    assert not torch.equal(objective(k=300.0, b=0.0)(*given, 200), denoising(*given))


def test_errors_are_those_of_two_levels_of_one_path_over_their_gap():
    denoiser, own = Denoiser(Network(), PRECOND), objective()
    gap = own.gap(SIGMA, 40)
    column = [value[:, None, None, None] for value in (SIGMA, SIGMA * (1 - gap), gap)]
    upper, lower = (denoiser(X0S + sigma * NOISE, sigma.flatten(), {}) for sigma in column[:2])
    errors = own(denoiser, X0S, SIGMA, NOISE, {}, 40)
    torch.testing.assert_close(errors, (upper - lower) / column[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_stop_at_the_lower_level_and_reach_all_weights_of_the_upper(autocast):
    network = Network()
    frozen = Denoiser(copy.deepcopy(network), PRECOND)
    denoiser, levels = Denoiser(network, PRECOND), []

    def noted(x, sigma, cond):
        levels.append(sigma)
        return denoiser(x, sigma, cond)

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        objective()(noted, X0S, SIGMA, NOISE, {}, 40).square().sum().backward()
    found = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    upper, lower = levels
    assert (lower < upper).all() and len(found) == 6

    def apart(x, sigma, cond):
        return (denoiser if torch.equal(sigma, upper) else frozen)(x, sigma, cond)

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        objective()(apart, X0S, SIGMA, NOISE, {}, 40).square().sum().backward()
    for grad, parameter in zip(found, network.parameters(), strict=True):
        assert torch.equal(grad, parameter.grad) and grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in frozen.parameters())


def test_both_levels_drop_the_same_units_and_draw_no_more_than_one():
    masks = []

    class Noted(Network):
        def forward(self, x, c_noise):
            masks.append(self.dropout(torch.ones(4, 100)))
            return super().forward(x, c_noise)

    network = Noted(dropout=0.5).train()
    torch.manual_seed(1)
    objective()(Denoiser(network, PRECOND), X0S, SIGMA, NOISE, {}, 40)
    after = torch.rand(3)
    assert torch.equal(*masks)
    torch.manual_seed(1)
    Denoiser(network, PRECOND)(X0S, SIGMA, {})
    assert torch.equal(after, torch.rand(3)) and torch.equal(masks[0], masks[2])


def test_a_function_tuned_on_a_gaussian_draws_it_in_one_step_where_a_denoiser_draws_its_mean():
    """Trained from the denoiser, D = a(sigma) x: from N(0, 9) at sigma 20 to a standard deviation of 1."""

    class Factor(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 1))

        def forward(self, x, c_noise):
            return self.layers(c_noise[:, None])[..., None, None] * x

    noise, generator = LogNormal(0.6, 1.6), torch.Generator().manual_seed(0)
    denoiser = Denoiser(Factor(), PRECOND)
    own = Consistency(PRECOND, Expert(), max_steps=700, every_steps=100)
    weighting, drawn = Native(PRECOND), {}
    for name, errors in (("denoiser", denoising), ("tuned", own)):
        optimizer = torch.optim.Adam(denoiser.parameters(), 3e-3)
        for step in range(700):
            x0, n = torch.randn(2, 512, 1, 1, 4, generator=generator)
            sigma = noise.sample(512, generator).float()
            loss = diffusion_loss(denoiser, x0, sigma, n, {}, weighting, squared, partial(errors, step=step)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        x = 20 * torch.randn(4000, 1, 1, 4, generator=generator)
        drawn[name] = denoiser(x, torch.full((4000,), 20.0), {}).std().item()
    assert drawn["denoiser"] < 0.15  # 1 / sqrt(401) is exact
    assert drawn["tuned"] == pytest.approx(1.0, abs=0.15)


# What it is refused for


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"every_steps": 0}, r"objective\.every_steps: must be at least 1"),
        ({"factor": 1.0}, r"objective\.factor: must be above 1"),
        ({"max_steps": 25}, r"max_steps=25 are 25 stages, and after 24 .*every_steps=7"),
        ({"max_steps": 13, "factor": 4.0}, r"objective\.every_steps=1: max_steps=13 .* after 12 "),
        ({"k": -1.0}, r"objective\.k, objective\.b"),
        ({"b": -0.1}, r"objective\.k, objective\.b"),
        ({"expert": Expert(node=(1, 1))}, "expert: objective=consistency"),
        ({"expert": Expert(exclude=[(1, 1)])}, "expert: objective=consistency"),
        ({"precond": X0(VE())}, r"precond \(X0\): D\(x; 0\) is not x"),
        ({"precond": Regression()}, r"precond \(Regression\): D\(x; 0\) is not x"),
    ],
)
def test_what_cannot_be_made_consistent_is_refused(keys, problem):
    with pytest.raises(ValueError, match=problem):
        Consistency(**{"precond": PRECOND, "expert": Expert(), "max_steps": 4, "every_steps": 1, **keys})


@pytest.mark.parametrize(
    "precond", [PRECOND, EDM(VE(), 0.5), V(scaled_linear(0.0015, 0.0195)), Eps(VE()), Flow(FlowSchedule())]
)
def test_every_other_prediction_is_x_without_noise(precond):
    Consistency(precond, Expert(within=LogNormal(0.0, 1.0)), max_steps=4, every_steps=1)


# Runs

DISTILLED = (
    "objective.every_steps=1",
    "network.dropout=0.1",
    "data.horizontal_flip_prob=0.5",
    "task.keep_latents=false",
)


@pytest.fixture
def distil(diffusion: Run, tmp_path: Path) -> Callable[..., Run]:
    def start(*more: str, run: str = "student") -> Run:
        return train("distill/quickstart", tmp_path, f"branch={diffusion.folder}", *more, run=run)

    return start


def test_a_student_goes_on_bit_for_bit_over_its_stages_and_leaves_its_teacher_alone(distil, diffusion: Run):
    files = {path: path.read_bytes() for path in diffusion.folder.rglob("*") if path.is_file()}
    whole = distil(*DISTILLED, "max_steps=4", run="whole")
    distil(*DISTILLED, "max_steps=2", run="parts")
    parts = distil(*DISTILLED, "max_steps=4", run="parts")
    (parts.folder / "metrics.csv").write_bytes((whole.folder / "metrics.csv").read_bytes())
    assert_equal_runs(whole.folder, parts.folder, step=4)
    assert parts.lineage["parent"]["run"] == diffusion.name
    assert {path: path.read_bytes() for path in diffusion.folder.rglob("*") if path.is_file()} == files
    assert curve(whole.folder)[1] != curve(distil(*DISTILLED, "objective.factor=4", run="other").folder)[1]
    with pytest.raises(ValueError, match=r"objective\.factor is 4, but the run .* 2\.0"):
        distil(*DISTILLED, "max_steps=4", "objective.factor=4", run="parts")


def test_the_objective_is_denoising_unless_another_is_chosen(train_diffusion: Callable[..., Run]):
    names = ("null", "denoising", "consistency")
    first, same, other = (curve(train_diffusion(f"objective={name}", "max_steps=2", run=name).folder) for name in names)
    assert first == same != other


def test_samples_are_drawn_from_files_in_as_many_steps_as_asked_for(distil, tmp_path: Path, capsys):
    run = distil("max_steps=1").folder
    pictures = {}
    for num_steps in (None, 1, 2, 3):
        out = tmp_path / f"samples-{num_steps}"
        words = [f"model={run}", "prompt=red heart", "num_images=1", "device=cpu", f"out={out}"]
        assert main(overriding([*words, *([f"num_steps={num_steps}"] if num_steps else [])])) in (0, None)
        pictures[num_steps] = np.asarray(Image.open(next(out.glob("*.png"))))
    assert np.array_equal(pictures[None], pictures[2]), "its own number of steps"
    assert not np.array_equal(pictures[1], pictures[2]) and not np.array_equal(pictures[2], pictures[3])


def test_an_expert_of_a_part_of_the_noise_is_not_begun(distil, diffusion: Run, tmp_path: Path):
    with pytest.raises(ValueError, match="expert: objective=consistency leads through all of the noise"):
        distil("expert.node=[1,1]", "noise.std=1.2")
    assert not (tmp_path / "student").exists()
