"""Paint-with-words: every cross-attention is eDiff-I's formula, in both networks, in windows and in an ensemble."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.experts import route
from ldm.diffusion.painting import painted
from ldm.diffusion.precond import EDM
from ldm.diffusion.schedule import VE
from ldm.diffusion.tiles import blended
from ldm.networks import layers
from ldm.networks.adm_unet import ADMUNet
from ldm.networks.attention import Attention
from ldm.networks.bias import Bias, largest_of_batch, largest_of_head, largest_of_sample, spread_of_sample
from ldm.networks.dit import DiT
from ldm.networks.efficient_unet import EfficientUNet
from ldm.networks.unet import UNet

WIDTH, NUM_TOKENS, SCALE = 5, 6, 0.4
SIGMA = torch.tensor([0.5, 3.0])
MAPS = {64: (8, 8), 32: (4, 8), 16: (4, 4), 8: (2, 4)}  # height and width of U-Nets' maps, by their positions
NETWORKS = {
    "unet": (
        partial(
            UNet, 4, 4, 8, [1, 2], num_blocks=1, attention_factors=[1, 2], num_heads=2, norm_groups=4,
            tokens_width=WIDTH, transformer_depth=2,
        ),
        MAPS,
    ),
    "dit": (
        partial(DiT, 4, 4, patch_size=2, width=16, depth=2, num_heads=2, tokens_width=WIDTH),
        {16: (4, 4), 8: (2, 4)},
    ),
    "adm_unet": (
        partial(ADMUNet, 4, 4, 8, [1, 2], 1, [1, 2], head_channels=4, norm_groups=4, tokens_width=WIDTH),
        MAPS,
    ),
    "efficient_unet": (
        partial(
            EfficientUNet, 4, 4, 8, [1, 2], [1, 1], 1, cross_attention_factors=[1, 2], head_channels=4, norm_groups=4,
            tokens_width=WIDTH,
        ),
        MAPS,
    ),
}  # fmt: skip


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def denoiser(name: str, seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    network = NETWORKS[name][0]()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Denoiser(network.eval().requires_grad_(False), EDM(VE(), 1.0))


def conditions(height: int, width: int) -> dict[str, torch.Tensor]:
    """Regions with sharp borders, one for each of three tokens, and a mask in which one sample has fewer tokens."""
    regions = torch.zeros(2, NUM_TOKENS, height, width)
    regions[:, 1, : height // 2] = 1
    regions[:, 2, :, width // 2 :] = 1
    regions[1, 3, 1:3, 1:2] = 0.5
    mask = torch.ones(2, NUM_TOKENS, dtype=torch.bool)
    mask[1, 4:] = False
    return {"tokens": 3 * randn(2, NUM_TOKENS, WIDTH, seed=1), "tokens_mask": mask, "tokens_bias": regions}


def split(tokens: torch.Tensor, num_heads: int) -> torch.Tensor:
    return tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def formula(module: Attention, x: torch.Tensor, tokens, mask, weights, regions) -> torch.Tensor:
    """softmax((Q K^T + w A) / sqrt(d)) V sample by sample, A [M, h, w] being of the layer's resolution."""
    answers = []
    for sample in range(len(x)):
        real = tokens[sample, mask[sample]]
        q, k, v = (
            split(t[None], module.num_heads)[0] for t in (module.to_q(x[sample]), module.to_k(real), module.to_v(real))
        )
        products = q @ k.transpose(1, 2)
        w = weights[sample] * products.max()
        scores = (products + w * regions[sample, mask[sample]].flatten(1).T) / math.sqrt(q.shape[-1])
        answers.append((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))
    return module.to_out(torch.stack(answers))


@pytest.mark.parametrize("size", [(8, 8), (4, 8)])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_cross_attention_is_the_formula(name, size):
    model, cond, seen = denoiser(name), conditions(*size), []
    regions, weights = cond["tokens_bias"], SCALE * (1 + SIGMA).log()

    def compare(module, arguments, output):
        x, context = arguments
        if context.tokens.shape[-1] == WIDTH:
            place = NETWORKS[name][1][x.shape[1]]
            resized = F.interpolate(regions, place, mode="bilinear", antialias=True)
            expected = formula(module, x, cond["tokens"], cond["tokens_mask"], weights, resized)
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
            seen.append(place)

    x = randn(2, 4, *size)
    plain = model(x, SIGMA, {key: value for key, value in cond.items() if key != "tokens_bias"})
    for module in model.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(compare)
    assert (painted(model, SCALE)(x, SIGMA, cond) - plain).abs().max() > 1e-3
    assert len(set(seen)) == (1 if name == "dit" else 2)


@pytest.mark.parametrize("name", NETWORKS)
def test_windows_of_an_ensemble_are_painted_like_a_model_of_their_own(name):
    members = [denoiser(name), denoiser(name, seed=1)]
    x, cond = randn(2, 4, 8, 12), conditions(8, 12)

    def experts(wrap):
        low, high = (wrap(member) for member in members)
        bound = [lambda x, sigma: low(x, sigma, cond), lambda x, sigma: high(x, sigma, cond)]
        return route(bound, [[(0.0, 1.0)], [(1.0, math.inf)]])(x, SIGMA)

    answer = experts(lambda member: blended(8, num_parallel=2)(painted(member, SCALE)))
    torch.testing.assert_close(experts(lambda member: painted(blended(8)(member), SCALE)), answer, rtol=0, atol=1e-5)

    window = blended(8).window(8, 8)
    for sample, member in enumerate(members):  # sigma 0.5 is the first one's, 3 the second's
        total, weight = torch.zeros(4, 8, 12), torch.zeros(8, 12)
        own = {key: value[sample : sample + 1] for key, value in cond.items()}
        bias = SCALE * (1 + SIGMA[sample]).log() * own["tokens_bias"]
        for left in blended(8).starts(12):
            part = (..., slice(left, left + 8))
            estimate = member(x[sample, None][part], SIGMA[sample, None], {**own, "tokens_bias": bias[part]})[0]
            total[part] += window * estimate
            weight[part] += window
        torch.testing.assert_close(answer[sample], total / weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_regions_of_zeros_change_nothing_and_no_sample_knows_of_the_others(name):
    model, x, cond = denoiser(name), randn(2, 4, 8, 8), conditions(8, 8)
    plain = {key: value for key, value in cond.items() if key != "tokens_bias"}
    expected = model(x, SIGMA, plain)
    assert torch.equal(painted(model, 0.0)(x, SIGMA, cond), expected), "bit for bit"
    zero = {**cond, "tokens_bias": 0 * cond["tokens_bias"]}
    torch.testing.assert_close(painted(model, SCALE)(x, SIGMA, zero), expected, rtol=0, atol=1e-5)
    both = painted(model, SCALE)(x, SIGMA, cond)
    alone = painted(model, SCALE)(x[1:], SIGMA[1:], {key: value[1:] for key, value in cond.items()})
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_painting_in_bf16_follows_fp32_and_passes_gradients(name):
    model, x, cond = denoiser(name), randn(2, 4, 8, 8).requires_grad_(), conditions(8, 8)
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = painted(model, SCALE)(x, SIGMA, cond)
        found.append((out.detach(), torch.autograd.grad(out.square().sum(), x)[0]))
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() < 0.1 * one.norm() > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_without_regions_nothing_is_computed_for_them(name, monkeypatch):
    monkeypatch.setattr(layers, "_added", None)
    cond = {key: value for key, value in conditions(8, 8).items() if key != "tokens_bias"}
    assert painted(denoiser(name), SCALE)(randn(2, 4, 8, 8), SIGMA, cond).isfinite().all()


@pytest.mark.parametrize("unit", [largest_of_sample, largest_of_head, largest_of_batch, spread_of_sample])
def test_a_bias_is_in_the_unit_that_it_says(unit):
    q, k, v = randn(2, 3, 5, 8), randn(2, 3, 7, 8, seed=1), randn(2, 3, 7, 8, seed=2)
    count, bias = 5, randn(2, 1, 5, 7, seed=3).abs()  # two tokens are not visible
    mask = torch.arange(7).view(1, 1, 1, 7).expand(2, 1, 1, 7) < count
    products = (q @ k.transpose(-2, -1))[..., :count]
    in_words = {
        largest_of_sample: lambda b, h: products[b].max(),
        largest_of_head: lambda b, h: products[b, h].max(),
        largest_of_batch: lambda b, h: products.max(),
        spread_of_sample: lambda b, h: products[b].std(correction=0),
    }[unit]
    weights = torch.tensor([[in_words(b, h) for h in range(3)] for b in range(2)])[..., None, None]
    expected = ((products + weights * bias[..., :count]) / math.sqrt(8)).softmax(-1) @ v[:, :, :count]
    torch.testing.assert_close(layers.attention(q, k, v, mask, Bias(bias, unit)), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_takes_a_unit_and_resizes_what_is_in_it(name):
    model, x, cond = denoiser(name), randn(2, 4, 8, 8), conditions(8, 8)
    own = painted(model, SCALE)(x, SIGMA, cond)
    assert torch.equal(painted(model, SCALE, in_units=Bias)(x, SIGMA, cond), own), "as a plain tensor is meant"
    others = [partial(Bias, unit=unit) for unit in (largest_of_head, largest_of_batch, spread_of_sample)]
    for other in others:
        assert (painted(model, SCALE, in_units=other)(x, SIGMA, cond) - own).abs().max() > 1e-4
    squared = painted(model, SCALE, squared_sigma=True)(x, torch.ones(2), cond)
    assert torch.equal(squared, painted(model, SCALE)(x, torch.ones(2), cond)), "the same at sigma 1"
    assert not torch.equal(painted(model, SCALE, squared_sigma=True)(x, SIGMA, cond), own)


def test_both_kernels_add_the_same(monkeypatch):
    q, k, v = randn(2, 3, 5, 8), randn(2, 3, 7, 8, seed=1), randn(2, 3, 7, 8, seed=2)
    mask, bias = torch.arange(7).view(1, 1, 1, 7).expand(2, 1, 1, 7) < 5, randn(2, 1, 5, 7, seed=3).abs()
    expected = layers.attention(q, k, v, mask, bias)
    low = [t.bfloat16() for t in (q, k, v)]
    for limit in (layers.BMM_LIMIT, 0):
        monkeypatch.setattr(layers, "BMM_LIMIT", limit)
        out = layers.attention(low[0].clone().requires_grad_(), *low[1:], mask, bias)
        torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.1)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("bias", "problem"),
    [
        (torch.zeros(2, NUM_TOKENS, 4, 4), r"tokens_bias of \(2, 6, 4, 4\): must be of \(2, 6, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8), r"tokens_bias of \(2, 3, 8, 8\)"),
    ],
)
def test_regions_that_do_not_lie_on_the_latent_are_refused(name, bias, problem):
    cond = {**conditions(8, 8), "tokens_bias": bias}
    with pytest.raises(ValueError, match=problem):
        denoiser(name)(randn(2, 4, 8, 8), SIGMA, cond)
    if bias.shape[1] == NUM_TOKENS:
        with pytest.raises(ValueError, match=r"tokens_bias condition of \(4, 4\): .* \(8, 16\)"):
            blended(8)(denoiser(name))(randn(2, 4, 8, 16), SIGMA, cond)
