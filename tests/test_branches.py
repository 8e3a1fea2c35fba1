"""Guidance's branches in one batch: the same images to rounding, in half the evaluations."""

from collections.abc import Collection

import pytest
import torch
from torch import Tensor
from untrained import randomise

from ldm.conditioners.base import Conditioners
from ldm.conditioners.label import Label
from ldm.diffusion.branches import Together, apart
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import ClassifierFree, PerCondition
from ldm.diffusion.limits import Limits
from ldm.diffusion.precond import EDM
from ldm.diffusion.samplers import euler, heun
from ldm.diffusion.schedule import VE
from ldm.diffusion.sigmas import karras
from ldm.first_stage.first_stage import Identity
from ldm.generate import generate
from ldm.networks.unet import UNet
from ldm.sampling import Sampling

SIGMAS = karras(6, 0.02, 20.0)


class Counted:
    """A denoiser that tells how many samples it was asked for, each time."""

    factor = 1

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser
        self.asked: list[int] = []

    def __call__(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        self.asked.append(len(x))
        return self.denoiser(x, sigma, cond)


@pytest.fixture
def conditioner() -> Conditioners:
    torch.manual_seed(0)
    return Conditioners({"label": Label(5, width=4, slot="vector")})


def images(conditioner: Conditioners, together: bool, guidance, sampler=euler) -> tuple[Tensor, list[int]]:
    network = UNet(3, 3, 8, [1, 2], 1, [1, 2], head_channels=8, vector_width=4, norm_groups=4)
    randomise(network, 0.1, seed=0)
    denoiser = Counted(Denoiser(network, EDM(VE(), 1.0)))
    sampling = Sampling(sampler, SIGMAS, guidance, VE(), together=together)
    batch, numbers = {"label": torch.tensor([0, 2, 4])}, torch.arange(3)
    return generate(denoiser, conditioner, Identity(), sampling, batch, numbers, 0, 8), denoiser.asked


@pytest.mark.parametrize("sampler", [euler, heun])
@pytest.mark.parametrize("guidance", [ClassifierFree(3.0), PerCondition({"label": 2.0})])
def test_images_are_the_same_in_half_the_evaluations(conditioner, guidance, sampler):
    one_by_one, asked = images(conditioner, False, guidance, sampler)
    at_once, joined = images(conditioner, True, guidance, sampler)
    torch.testing.assert_close(at_once, one_by_one, rtol=0, atol=1e-4)
    assert set(asked) == {3} and joined == [6] * (len(asked) // 2)


def test_without_guidance_nothing_is_added(conditioner):
    plain, asked = images(conditioner, False, ClassifierFree(1.0))
    same, joined = images(conditioner, True, ClassifierFree(1.0))
    assert torch.equal(plain, same) and asked == joined


def test_outside_the_limits_of_guidance_only_what_is_needed_is_evaluated(conditioner):
    guidance = ClassifierFree(3.0, Limits(sigma_lo=0.5, sigma_hi=5.0))
    one_by_one, asked = images(conditioner, False, guidance)
    at_once, joined = images(conditioner, True, guidance)
    torch.testing.assert_close(at_once, one_by_one, rtol=0, atol=1e-4)
    steps = len(SIGMAS) - 1
    guided = len(asked) - steps
    assert 0 < guided < steps - 1
    assert joined.count(6) <= guided + 2  # the first step, and the one after the last guided one, know no better
    assert sum(joined) <= 3 * (len(asked) + 2)


def shown(cond: dict[str, Tensor]):
    """Branches whose estimate is x and the sum of what is given, and how many samples each call had."""
    calls: list[int] = []

    def denoiser(x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        calls.append(len(x))
        return x + sigma.view(-1, 1) + cond["tokens"].flatten(1).sum(1, keepdim=True)

    def given(names: Collection[str]) -> dict[str, Tensor]:
        return {"tokens": cond[min(names, default="")]}

    return denoiser, given, calls


def test_conditions_that_are_not_alike_are_evaluated_each_by_itself():
    denoiser, given, calls = shown({"a": torch.ones(2, 3, 1), "": torch.ones(2, 5, 1)})
    branch = Together(denoiser, given)
    full, null = branch(["a"]), branch(())
    x, sigma = torch.zeros(2, 1), torch.ones(2)
    assert full(x, sigma).tolist() == [[4.0], [4.0]] and null(x, sigma).tolist() == [[6.0], [6.0]]
    assert calls == [2, 2]


def test_another_x_or_one_that_was_written_into_is_evaluated_anew():
    cond = {"a": torch.ones(2, 3, 1), "": torch.zeros(2, 3, 1)}
    denoiser, given, calls = shown(cond)
    branch, plain = Together(denoiser, given), apart(denoiser, given)
    full, null = branch(["a"]), branch(())
    x, sigma = torch.zeros(2, 1), torch.ones(2)
    for _ in range(3):
        for asked, expected in ((full, plain(["a"])), (null, plain(()))):
            assert torch.equal(asked(x, sigma), expected(x, sigma))
        x += 1
    assert [count for count in calls if count == 4] == [4, 4, 4]
    assert torch.equal(null(x, sigma), plain(())(x, sigma))  # another order than before
