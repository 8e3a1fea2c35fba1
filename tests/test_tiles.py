"""Denoising in windows: a partition of unity, exact where windows cannot matter, near it elsewhere, in flat memory."""

import json
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from ldm.diffusion.experts import route
from ldm.diffusion.guidance import ClassifierFree
from ldm.diffusion.samplers import dpmpp_2m
from ldm.diffusion.sigmas import karras
from ldm.diffusion.tiles import Tiling, blended, border_distance, evenly, published, raised_cosine

TILINGS = {
    "published": published(8, 4),
    "tie_breaker": published(8, 4, tie_breaker=True),
    "blended": blended(8),
    "uneven": blended(64, 8, 5),
    "abutting": blended(8, stride=8, num_parallel=1),
}
SIZES = [(8, 8), (8, 20), (16, 12), (4, 32), (28, 20)]
SIGMA = torch.tensor([0.5, 2.0])


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pointwise(x, sigma, cond):
    """Each position by itself, after its sigma, its vector and its concat."""
    level, vector = sigma.view(-1, 1, 1, 1), cond["vector"].view(-1, 1, 1, 1)
    return (x + vector).sin() / (1 + level) + cond["concat"][:, :1]


# Exact


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS)
def test_windows_are_a_partition_of_unity(tiling, size):
    x = torch.zeros(2, 3, *size)
    ones = tiling(lambda x, sigma, cond: torch.ones_like(x))(x, SIGMA, {})
    torch.testing.assert_close(ones, torch.ones_like(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS)
def test_a_denoiser_of_single_positions_is_exact_and_conditions_stay_with_their_positions(tiling, size):
    x, cond = randn(2, 3, *size), {"vector": randn(2, 1), "concat": randn(2, 2, *size, seed=1)}
    answer = tiling(pointwise)(x, SIGMA, cond)
    torch.testing.assert_close(answer, pointwise(x, SIGMA, cond), rtol=0, atol=1e-6)


def test_tokens_hold_in_every_window():
    seen = []

    def denoiser(x, sigma, cond):
        seen.append(cond["tokens_mask"].shape)
        return x + cond["tokens"].masked_fill(~cond["tokens_mask"][..., None], 0).sum((1, 2)).view(-1, 1, 1, 1)

    x, cond = randn(2, 1, 16, 16), {"tokens": randn(2, 5, 3), "tokens_mask": torch.arange(10).view(2, 5) % 3 > 0}
    answer = blended(8, num_parallel=2)(denoiser)(x, SIGMA, cond)
    torch.testing.assert_close(answer, denoiser(x, SIGMA, cond), rtol=0, atol=1e-6)
    assert set(seen[:-1]) == {(4, 5), (2, 5)}


@pytest.mark.parametrize("size", [(8, 8), (4, 8), (3, 2)])
@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS)
def test_a_map_that_fits_in_one_window_is_the_denoisers_own_answer(tiling, size):
    x, cond = randn(2, 3, *size), {"vector": randn(2, 1), "concat": randn(2, 2, *size, seed=1)}
    assert torch.equal(tiling(pointwise)(x, SIGMA, cond), pointwise(x, SIGMA, cond))


@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS)
def test_a_convolution_is_exact_where_no_window_ends_within_its_reach(tiling):
    reach, x = 1, randn(2, 1, 28, 20)
    kernel = randn(1, 1, 2 * reach + 1, 2 * reach + 1, seed=1)

    def convolve(x, sigma, cond):
        return F.conv2d(x, kernel, padding=reach)

    cut_off = torch.zeros(28, 20, dtype=torch.bool)
    for axis, length in enumerate((28, 20)):
        for start in tiling.starts(length):
            edges = [p for p in (start, start + tiling.size) if 0 < p < length]
            for edge in edges:  # only on the inner side is a window's answer another one
                inside = slice(edge, edge + reach) if edge == start else slice(edge - reach, edge)
                (cut_off if axis == 0 else cut_off.T)[inside] = True
    error = (tiling(convolve)(x, SIGMA, {}) - convolve(x, SIGMA, {})).abs()
    assert not cut_off.all() and error[..., ~cut_off].max() < 1e-5
    assert error[..., cut_off].max() > 1e-2, "where a window ends, its zero padding is felt"


# Windows and weights


@pytest.mark.parametrize("length", [9, 16, 17, 40, 41, 63])
@pytest.mark.parametrize(("size", "stride"), [(8, 4), (8, 8), (8, 7), (8, 1)])
def test_windows_reach_from_border_to_border_evenly_and_are_no_more_than_needed(length, size, stride):
    starts = evenly(length, size, stride)
    steps = [after - before for before, after in pairwise(starts)]
    assert starts[0] == 0 and starts[-1] == length - size
    assert max(steps) <= stride and max(steps) - min(steps) <= 1
    assert len(starts) == -(-(length - size) // stride) + 1


def test_weights_are_positive_symmetric_and_largest_in_the_middle():
    for window in (border_distance, raised_cosine):
        weights = window(7, 12)
        assert weights.shape == (7, 12) and weights.min() > 0
        torch.testing.assert_close(weights, weights.flip(0, 1), rtol=0, atol=1e-6)
        assert weights.max() - weights[3, 5] < 1e-6
    assert border_distance(8, 8)[0].tolist() == pytest.approx([0.01] * 8)
    assert border_distance(5, 5)[2].tolist() == pytest.approx([0.01, 0.25, 0.5, 0.25, 0.01])


@pytest.mark.parametrize("tie_breaker", [False, True])
def test_published_windows_are_those_of_unfold_and_fold(tie_breaker):
    """The public code's arithmetic, written with the same two operations on a rectangle of 3 x 4 windows."""
    size, stride, x = 8, 4, randn(1, 1, 16, 20)
    unfold = {"kernel_size": size, "stride": stride}
    patches = F.unfold(x, **unfold).view(1, 1, size, size, 12)
    answers = torch.stack([patches[..., k].cumsum(-1) for k in range(12)], -1)  # looks beyond single positions
    weights = border_distance(size, size)[..., None] * torch.ones(12)
    if tie_breaker:
        weights = weights * border_distance(3, 4).flatten()
    fold = {"output_size": (16, 20), **unfold}
    expected = F.fold((answers * weights).view(1, -1, 12), **fold) / F.fold(weights.reshape(1, -1, 12), **fold)
    tiling = published(size, stride, tie_breaker)
    answer = tiling(lambda x, sigma, cond: x.cumsum(-1))(x, SIGMA[:1], {})
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-5)


def test_published_defaults_are_the_public_codes():
    tiling = published()
    assert (tiling.size, tiling.stride) == (128, 64) and tiling.starts(256) == [0, 64, 128]


# Costs


@pytest.mark.parametrize("size", [(16, 16), (64, 16), (48, 80)])
@pytest.mark.parametrize("num_parallel", [1, 3])
def test_no_call_sees_more_than_its_windows_whatever_the_size(size, num_parallel):
    seen = []

    def denoiser(x, sigma, cond):
        seen.append(tuple(x.shape))
        return x

    tiling = blended(8, num_parallel=num_parallel)
    tiling(denoiser)(torch.zeros(2, 3, *size), SIGMA, {})
    assert {shape[1:] for shape in seen} == {(3, 8, 8)}
    assert max(shape[0] for shape in seen) == 2 * num_parallel
    assert sum(shape[0] for shape in seen) == 2 * (size[0] // 4 - 1) * (size[1] // 4 - 1)


MEGAPIXEL = """
import json, sys, torch
from ldm.conditioners.base import Conditioners
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import ClassifierFree
from ldm.diffusion.precond import EDM
from ldm.diffusion.samplers import euler
from ldm.diffusion.schedule import VE
from ldm.diffusion.tiles import blended
from ldm.first_stage.first_stage import FirstStage
from ldm.first_stage.regularizers import KL
from ldm.generate import Sampling, generate
from ldm.networks.autoencoder import Autoencoder
from ldm.networks.unet import UNet

torch.set_num_threads(1)
height, width, tiles = json.loads(sys.argv[1])
autoencoder = Autoencoder(6, 3, channels=8, multipliers=[1, 1, 1], num_blocks=1, norm_groups=4, mid_attention=False)
stage = FirstStage(autoencoder, KL(3), [0.0] * 3, [1.0] * 3, "x")
network = UNet(3, 3, 16, [1, 2], num_blocks=1, attention_factors=[2], head_channels=16, norm_groups=8)
denoiser = Denoiser(network, EDM(VE(), 1.0))
stage.tile = 128 if tiles else None
tiling = blended(32) if tiles else None
sampling = Sampling(euler, torch.tensor([5.0, 0.0]), ClassifierFree(1.0), VE(), tiling=tiling)
images = generate(denoiser, Conditioners(), stage, sampling, {}, torch.tensor([0]), 0, (height, width))
(peak,) = [int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(json.dumps({"shape": list(images.shape), "finite": bool(images.isfinite().all()), "peak": peak}))
"""


def drawn(height: int, width: int, tiles: bool) -> dict:
    """An image from untrained networks in a process of its own, and the most memory that had, MiB."""
    command = [sys.executable, "-c", MEGAPIXEL, json.dumps([height, width, tiles])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
def test_a_megapixel_takes_hardly_more_memory_than_one_window():
    small, large, whole = drawn(128, 128, True), drawn(1024, 1024, True), drawn(1024, 1024, False)
    assert large["shape"] == [1, 3, 1024, 1024] and large["finite"]
    image = 3 * 1024**2 * 4 / 2**20  # MiB
    assert large["peak"] - small["peak"] < 8 * image  # of the image itself some copies are made
    assert whole["peak"] - small["peak"] > 2 * (large["peak"] - small["peak"])


# Quality


class GaussianField:
    """The exact denoiser of a stationary Gaussian field with covariance e^(-(|dy| + |dx|) / reach), on any rectangle.

    Sees only the rectangle it is given: a perfect network for that size.
    """

    def __init__(self, reach: float):
        self.reach = reach

    def __call__(self, x, sigma, cond):
        down, across = (self._spectrum(side) for side in x.shape[-2:])
        power = torch.outer(down[0], across[0])
        waves = down[1].T @ x.double() @ across[1] * power / (power + sigma.view(-1, 1, 1, 1) ** 2)
        return (down[1] @ waves @ across[1].T).to(x)

    def _spectrum(self, side: int):
        places = torch.arange(side, dtype=torch.float64)
        return torch.linalg.eigh((-(places[:, None] - places).abs() / self.reach).exp())


def test_better_windows_are_nearer_to_the_whole_and_show_less_of_a_seam():
    field, ladder, x = GaussianField(4.0), karras(20, 0.02, 40.0), 40 * randn(64, 1, 40, 40)

    def sample(denoiser):
        return dpmpp_2m(lambda x, sigma: denoiser(x, sigma, {}), x, ladder)

    whole = sample(field)
    found = {}
    for name, tiling in (("published", published(16, 8)), ("blended", blended(16))):
        z = sample(tiling(field))
        jumps = (z.diff(dim=3).square().mean((0, 1, 2)) / whole.diff(dim=3).square().mean((0, 1, 2))).max()
        found[name] = ((z - whole).square().mean().sqrt().item(), jumps.item())
    assert found["blended"][0] < 0.8 * found["published"][0] < 0.08
    assert found["blended"][1] < 1.06 < 1.12 < found["published"][1]


# Together with the rest


def test_guidance_and_experts_see_an_ordinary_denoiser():
    class Half(torch.nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.share = factor

        def forward(self, x, sigma, cond):
            return self.share * x + cond["concat"]

    x, members = randn(2, 1, 16, 12), [Half(0.5), Half(0.25)]
    cond, null = {"concat": randn(2, 1, 16, 12, seed=1)}, {"concat": torch.zeros(2, 1, 16, 12)}

    def guided(denoiser):
        guide = ClassifierFree(3.0)
        return guide(lambda x, s: denoiser(x, s, cond), lambda x, s: denoiser(x, s, null))

    def experts(wrap):
        return route([guided(wrap(member)) for member in members], [[(0.0, 1.0)], [(1.0, float("inf"))]])

    windows = blended(8, num_parallel=3)
    torch.testing.assert_close(experts(windows)(x, SIGMA), experts(lambda member: member)(x, SIGMA), rtol=0, atol=1e-5)


def test_gradients_pass_through_the_windows():
    x, cond = randn(2, 3, 16, 12).requires_grad_(), {"vector": randn(2, 1), "concat": randn(2, 2, 16, 12, seed=1)}
    gradients = [
        torch.autograd.grad(d(x, SIGMA, cond).square().sum(), x)[0] for d in (blended(8)(pointwise), pointwise)
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


# Mistakes


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: blended(8, 0), r"tiling\.size, tiling\.stride: .* got 0 and 1"),
        (lambda: blended(8, stride=9), "got 8 and 9"),
        (lambda: published(8, 0), "got 8 and 0"),
        (lambda: blended(8, num_parallel=0), r"tiling\.num_parallel=0"),
        (lambda: published(8, 4).starts(17), r"tiling\.size=8, tiling\.stride=4: leave the last 1 of 17 .*blended"),
    ],
)
def test_bad_settings_are_refused_by_key(make, problem):
    with pytest.raises(ValueError, match=problem):
        make()


def test_a_concat_condition_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"concat condition of \(8, 8\): .* \(16, 16\)"):
        blended(8)(pointwise)(torch.zeros(2, 3, 16, 16), SIGMA, {"concat": torch.zeros(2, 2, 8, 8)})


def test_latents_that_are_no_maps_are_refused():
    with pytest.raises(ValueError, match=r"tiling: cuts maps .* \[2, 3, 16\]"):
        blended(8)(pointwise)(torch.zeros(2, 3, 16), SIGMA, {})


def test_windows_of_a_size_are_a_tiling_with_its_own_functions():
    tiling = Tiling(8, 4, evenly, torch.ones)
    x = randn(1, 1, 12, 8)
    answer = tiling(lambda x, sigma, cond: x.mean((2, 3), keepdim=True).expand_as(x))(x, SIGMA[:1], {})
    top, bottom = x[..., :8, :].mean(), x[..., 4:, :].mean()
    torch.testing.assert_close(answer[0, 0, :, 0], torch.stack([*[top] * 4, *[(top + bottom) / 2] * 4, *[bottom] * 4]))
