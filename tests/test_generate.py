"""Sampling's one place: what is bound to a batch, references, and the order in which guidance is applied."""

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import nn
from untrained import randomise

from ldm.conditioners.base import Conditioners
from ldm.conditioners.label import Label
from ldm.conditioners.null_token import NullToken
from ldm.diffusion.counter_random import normal
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import Bound, ClassifierFree
from ldm.diffusion.precond import EDM
from ldm.diffusion.repaint import repaint
from ldm.diffusion.samplers import ddim, ddpm, dpmpp_2m, dpmpp_sde, euler, euler_ancestral, heun
from ldm.diffusion.schedule import VE, Flow, scaled_linear
from ldm.diffusion.sigmas import karras
from ldm.diffusion.tiles import blended
from ldm.first_stage.first_stage import Identity
from ldm.generate import bind, check_size, generate
from ldm.networks.unet import UNet
from ldm.sampling import Known, Sampling, Start
from ldm.sampling import draw as sampled

NUMBERS = torch.tensor([3, 8])
BATCH = {"label": torch.tensor([0, 2])}
SIGMAS = torch.tensor([5.0, 1.0, 0.2, 0.0])
X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Shifted(nn.Module):
    """A posterior mean whose prior is centred where its condition says."""

    factor = 1

    def forward(self, x, sigma, cond):
        centre = cond["vector"].mean(1).view(-1, 1, 1, 1) if cond else 0.0
        return centre + (x - centre) / (1 + sigma.view(-1, 1, 1, 1) ** 2)


@dataclass
class Noted:
    """Guidance that notes what it is given, then adds and multiplies."""

    add: float
    factor: float
    seen: list

    def guide(self, bound: Bound):
        self.seen.append(bound)
        return lambda x, sigma: (bound.denoise(x, sigma) + self.add) * self.factor


@pytest.fixture
def conditioner() -> Conditioners:
    torch.manual_seed(0)
    return Conditioners({"label": Label(5, width=4, slot="vector")})


def draw(conditioner: Conditioners, *loss_guidance, scale: float = 1.0, negative=None):
    sampling = Sampling(euler, SIGMAS, ClassifierFree(scale), VE(), loss_guidance)
    return generate(Shifted(), conditioner, Identity(), sampling, BATCH, NUMBERS, 0, 4, negative)


def test_each_guidance_takes_what_the_one_before_it_made(conditioner):
    seen = []
    first, second = Noted(0.1, 1.0, seen), Noted(0.0, 0.5, seen)
    images = draw(conditioner, first, second)
    assert not torch.equal(images, draw(conditioner, second, first)), "the order counts"
    level = torch.full((2,), 2.0)
    expected = (seen[0].denoise(X, level) + 0.1) * 0.5
    assert torch.equal(second.guide(seen[1])(X, level), expected)
    assert seen[0].conditions == ("label",) and seen[0].num_samples == 2
    assert seen[0].batch.keys() == {*BATCH, "number", "normal"}
    assert seen[0].decode(X).shape == (2, 3, 4, 4)


def test_a_negative_stands_in_the_place_of_the_null(conditioner):
    other = {"label": torch.tensor([1, 1])}
    given, level = bind(Shifted(), conditioner, BATCH, 2, other), torch.full((2,), 2.0)
    kept = conditioner.drop_none(2)
    assert torch.equal(given(["label"])(X, level), Shifted()(X, level, conditioner(BATCH, drop=kept)))
    assert torch.equal(given(())(X, level), Shifted()(X, level, conditioner(other, drop=kept)))
    assert not torch.equal(draw(conditioner, scale=2.0), draw(conditioner, scale=2.0, negative=other))
    assert torch.equal(draw(conditioner, scale=2.0, negative=BATCH), draw(conditioner, scale=1.0))


@pytest.mark.parametrize("sampler", [ddpm, euler_ancestral, dpmpp_sde, partial(ddim, eta=0.5)])
def test_an_image_is_the_same_whatever_the_batch(conditioner, sampler):
    """To rounding, with a network that convolves, attends and hears labels, and noise in every step."""
    network = UNet(3, 3, 8, [1, 2], 1, [1, 2], head_channels=8, vector_width=4, norm_groups=4)
    randomise(network, 0.1, seed=0)
    denoiser = Denoiser(network, EDM(VE(), 1.0))
    labels, numbers = torch.tensor([0, 2, 4, 1]), torch.tensor([3, 8, 0, 5])
    sampling = Sampling(sampler, karras(6, 0.02, 20.0), ClassifierFree(2.0), VE())

    def drawn(part: slice) -> torch.Tensor:
        batch = {"label": labels[part]}
        return generate(denoiser, conditioner, Identity(), sampling, batch, numbers[part], 0, (8, 12))

    together, alone = drawn(slice(None)), torch.cat([drawn(slice(k, k + 1)) for k in range(4)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.parametrize(("size", "problem"), [(6, "image_size=6"), ((8, 6), "height=8, width=6")])
def test_a_size_that_f_does_not_divide_is_refused_by_its_key(conditioner, size, problem):
    stage = Identity()
    stage.spec = replace(stage.spec, f=4)
    sampling = Sampling(euler, SIGMAS, ClassifierFree(1.0), VE())
    with pytest.raises(ValueError, match=f"{problem}: must be a multiple of the first stage's f = 4"):
        generate(Shifted(), conditioner, stage, sampling, BATCH, NUMBERS, 0, size)


def test_the_networks_factor_counts_for_the_image_or_for_the_windows():
    check_size(24, 40, f=4, factor=2)
    with pytest.raises(ValueError, match=r"height=24, width=20: must be a multiple of 8, .* f = 4 times .* 2"):
        check_size(24, 20, f=4, factor=2)
    check_size(24, 20, f=4, factor=2, tiling=blended(4))
    with pytest.raises(ValueError, match=r"tiling\.size=3: must be a multiple of the network's 2"):
        check_size(24, 20, f=4, factor=2, tiling=blended(3))


def test_conditions_are_encoded_once_and_only_if_they_are_used(conditioner):
    calls = []
    conditioner.register_forward_hook(lambda module, args, result: calls.append(1))
    draw(conditioner)
    assert len(calls) == 1, "scale 1 needs no null"
    draw(conditioner, scale=2.0)
    assert len(calls) == 3


@pytest.mark.parametrize("end", [0.0, 0.75])
def test_what_a_sampler_leaves_is_decoded_in_the_scale_of_its_schedule(end):
    def decoded(schedule):
        sampling = Sampling(
            lambda denoise, x, sigmas, noise: torch.full_like(x, 0.5), ladder, ClassifierFree(1.0), schedule
        )
        return generate(Shifted(), Conditioners(), Identity(), sampling, {}, NUMBERS, 0, 4)[0, 0, 0, 0].item()

    ladder = torch.tensor([2.0, end])
    assert decoded(scaled_linear(0.00085, 0.012)) == pytest.approx(0.5 / (1 + end**2) ** 0.5)
    assert decoded(Flow()) == pytest.approx(0.5 / (1 + end))
    assert decoded(VE()) == 0.5


def test_a_bias_of_tokens_steers_the_conditional_branch_alone():
    """One of zeros changes no bit; the reference of guidance never sees one, and who guides knows nothing of it."""
    torch.manual_seed(0)
    tokens = Conditioners({"label": Label(5, width=4), "null": NullToken(width=4)})
    network = UNet(3, 3, 8, [1, 2], 1, [1, 2], head_channels=8, tokens_width=4, norm_groups=4)
    randomise(network, 0.3, seed=0)
    denoiser = Denoiser(network, EDM(VE(), 1.0))
    regions = torch.zeros(2, 1, 8, 8)
    regions[..., :4] = 2

    def drawn(scale: float, **more) -> torch.Tensor:
        sampling = Sampling(euler, SIGMAS, ClassifierFree(scale), VE())
        return generate(denoiser, tokens, Identity(), sampling, {**BATCH, **more}, NUMBERS, 0, 8)

    for scale in (1.0, 3.0):
        assert torch.equal(drawn(scale, tokens_bias={"label": 0 * regions}), drawn(scale))
        assert not torch.equal(drawn(scale, tokens_bias={"label": regions}), drawn(scale))
    assert torch.equal(drawn(0.0, tokens_bias={"label": regions}), drawn(0.0)), "unconditional"
    x, level = normal(0, "x", NUMBERS, (3, 8, 8)), torch.full((2,), 2.0)
    own, plain = (bind(denoiser, tokens, {**BATCH, **more}, 2) for more in ({"tokens_bias": {"label": regions}}, {}))
    assert torch.equal(own(())(x, level), plain(())(x, level))
    assert not torch.equal(own(["label"])(x, level), plain(["label"])(x, level))


# Drawing from what is there


@pytest.mark.parametrize("sampler", [euler, heun, dpmpp_2m, ddpm, dpmpp_sde])
def test_a_draw_begins_at_a_sigma(sampler):
    """From the picture under noise of that level, by the rest of the sigma schedule (SDEdit)."""
    sampling = Sampling(sampler, SIGMAS, ClassifierFree(1.0), VE())
    x0 = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    drawn = sampled(unit_prior, sampling, (3, 4, 4), NUMBERS, 0, Start(x0, 0.7))
    first = normal(0, "first noise", NUMBERS, (3, 4, 4))

    def noise(step):
        return normal(0, "sampler noise", NUMBERS, (3, 4, 4), stream=step)

    assert torch.equal(drawn, sampler(unit_prior, x0 + 0.7 * first, torch.tensor([0.7, 0.2, 0.0]), noise=noise))
    whole = sampled(unit_prior, sampling, (3, 4, 4), NUMBERS, 0)
    nothing = Start(torch.zeros_like(x0), SIGMAS[0].item())
    assert torch.equal(sampled(unit_prior, sampling, (3, 4, 4), NUMBERS, 0, nothing), whole), "VE: noise alone"
    for sigma in (0.0, 5.1):
        with pytest.raises(ValueError, match=rf"sigma={sigma:g}: the sigma schedule goes from 5 down to 0"):
            sampled(unit_prior, sampling, (3, 4, 4), NUMBERS, 0, Start(x0, sigma))


@pytest.mark.parametrize("schedule", [VE(), Flow(), scaled_linear(0.00085, 0.012)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("sampler", [euler, heun, dpmpp_2m, ddpm, euler_ancestral, dpmpp_sde, repaint])
def test_what_is_known_is_held_at_every_step(sampler, schedule):
    """It comes out as it went in, and every estimate is asked of it under the noise of that level."""
    x0 = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    mask[..., :8] = True
    seen = []

    def denoise(x, sigma):
        seen.append(((x - x0) / sigma.view(-1, 1, 1, 1))[..., 8:])
        return unit_prior(x, sigma)

    sampling = Sampling(sampler, SIGMAS, ClassifierFree(1.0), schedule)
    for ladder in (SIGMAS, SIGMAS[:-1]):
        own = replace(sampling, sigmas=ladder)
        z = sampled(denoise, own, (3, 32, 32), NUMBERS, 0, known=Known(x0, mask))
        assert torch.equal(z[..., 8:], x0[..., 8:]) and not torch.equal(z[..., :8], x0[..., :8])
    for noise in seen:
        assert noise.mean().abs() < 0.1 and (noise.std() - 1).abs() < 0.1


def unit_prior(x, sigma):
    """The posterior mean of a standard normal."""
    return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)
