"""What spoils a picture, each kind for itself; and BSRGAN's recipe: how often each comes, when, and by whose draws."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.build import Parts
from ldm.config import compose, instantiate
from ldm.data import degradations as spoil
from ldm.data.counter_random import generator
from ldm.data.fields.bsrgan import Bsrgan
from ldm.data.fields.low_resolution import PilBicubic

RAMP = np.tile(np.linspace(0, 1, 96, dtype=np.float32)[None, :, None], (3, 1, 64))  # brighter downwards
GREY = np.full((3, 96, 64), 0.5, np.float32)
WINDOWS = torch.rand(4, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
NUMBERS = torch.tensor([5, 0, 2**40, 7])


def option(name: str) -> Bsrgan:
    """The field that derived=`name` makes, with the seed 0."""
    tree = compose("config", ["experiment=ldm/superres", f"derived=[{name}]"], complete=False)
    return instantiate(tree["derived"], Parts(tree), "derived")["low_resolution"]


# Each kind


@pytest.mark.parametrize("resized", [spoil.bilinear, spoil.bicubic, spoil.bicubic_antialiased, spoil.area])
def test_resizes_keep_what_is_where_it_is(resized):
    for size in ((24, 16), (37, 50), (96, 64)):
        found = resized(RAMP, size)
        expected = (np.arange(size[0]) + 0.5) / size[0]  # pixels' middles
        assert found.shape == (3, *size)
        inside = slice(size[0] // 10, -(size[0] // 10))
        assert np.allclose(found[:, inside, 0], (96 * expected[inside] - 0.5) / 95, atol=2e-3)


def test_dropping_pixels_keeps_what_is_where_it_is():
    for factor in (2, 4):
        found, exact = spoil.nearest(RAMP, factor, 1.0), spoil.area(RAMP, (96 // factor, 64 // factor))
        assert np.allclose(found[:, 4:-4], exact[:, 4:-4], atol=1e-5)
    mirrored = spoil.nearest(RAMP[:, ::-1], 4, 1.0)[:, ::-1]
    assert np.allclose(mirrored[:, 4:-4], spoil.nearest(RAMP, 4, 1.0)[:, 4:-4], atol=1e-5)


def test_areas_are_means():
    image = np.random.default_rng(0).random((3, 12, 10), dtype=np.float32)
    assert np.allclose(spoil.area(image, (3, 5)), image.reshape(3, 3, 4, 5, 2).mean((2, 4)), atol=1e-6)
    assert np.allclose(spoil.area(image, (5, 3)).mean((1, 2)), image.mean((1, 2)), atol=1e-6)


def test_blurs_spread_a_point_as_wide_as_they_say():
    point = np.zeros((3, 41, 41), np.float32)
    point[:, 20, 20] = 1
    rows, columns = np.mgrid[:41, :41] - 20

    def spread(image: np.ndarray) -> np.ndarray:
        """Second moments [2, 2] of down and right."""
        places, weights = np.stack([rows.ravel(), columns.ravel()]), image[0].ravel() / image[0].sum()
        return (places * weights) @ places.T

    assert np.allclose(spread(spoil.isotropic_blur(point, 25, 2.0)), [[4, 0], [0, 4]], atol=0.05)
    assert np.allclose(spread(spoil.anisotropic_blur(point, 25, (9.0, 1.0), 0.0)), [[1, 0], [0, 9]], atol=0.1)
    assert np.allclose(spread(spoil.anisotropic_blur(point, 25, (9.0, 1.0), np.pi / 4)), [[5, 4], [4, 5]], atol=0.2)
    for blurred in (spoil.isotropic_blur(point, 7, 0.0), spoil.anisotropic_blur(point, 7, (0.0, 0.0), 1.0)):
        assert np.allclose(blurred, point, atol=1e-5)


def test_a_sinc_keeps_slow_waves_only_and_rings_beside_edges():
    def left(cutoff: float, period: float) -> float:
        wave = np.tile(0.5 + 0.4 * np.cos(2 * np.pi * np.arange(96) / period), (3, 64, 1)).astype(np.float32)
        return (spoil.sinc_filter(wave, 21, cutoff)[:, 20:-20, 20:-20]).std() / wave[:, 20:-20, 20:-20].std()

    assert left(np.pi / 3, 12) == pytest.approx(1, abs=0.1) and left(np.pi / 3, 3) < 0.15
    edge = np.full((3, 64, 64), 0.2, np.float32)
    edge[:, :, 32:] = 0.7
    rung = spoil.sinc_filter(edge, 21, np.pi / 3)[:, 20:-20]
    assert rung.max() > 0.74 and rung.min() < 0.16


@pytest.mark.parametrize(("kind", "light"), [(spoil.gaussian_noise, 1.0), (spoil.speckle_noise, 0.5)])
def test_noise_is_as_strong_and_as_coloured_as_it_is_asked_for(kind, light):
    def noise(channels: np.ndarray) -> np.ndarray:
        return (kind(GREY, np.random.default_rng(0), 0.04, channels) - GREY).reshape(3, -1)

    for channels, correlation in ((spoil.INDEPENDENT, np.eye(3)), (spoil.GREY, np.ones((3, 3)))):
        found = noise(channels)
        assert np.allclose(found.std(1), 0.04 * light, rtol=0.05)
        assert np.allclose(np.corrcoef(found), correlation, atol=0.05)
    channels = spoil.correlated(np.random.default_rng(3))
    expected = (0.04 * light) ** 2 * channels @ channels.T
    assert np.allclose(np.cov(noise(channels)), expected, atol=0.06 * expected.max())
    covariances = [own @ own.T for own in map(spoil.correlated, map(np.random.default_rng, range(200)))]
    assert max(np.linalg.eigvalsh(own).max() for own in covariances) <= 1
    assert np.mean([abs(own[0, 1]) for own in covariances]) > 0.05, "channels go together"


def test_photons_make_noise_that_grows_with_the_root_of_the_light():
    for value in (0.2, 0.8):
        image = np.full((3, 96, 64), value, np.float32)
        seen = np.round(value * 255) / 255
        counted = spoil.poisson_noise(image, np.random.default_rng(0), 1000.0, grey=False)
        assert counted.std() == pytest.approx((seen / 1000) ** 0.5, rel=0.03)
        grey = spoil.poisson_noise(image, np.random.default_rng(0), 1000.0, grey=True) - image
        assert np.allclose(grey[0], grey[1], atol=1e-6) and grey.std() > 0.01


def test_jpeg_is_worse_at_a_lower_quality():
    errors = [np.abs(spoil.jpeg(RAMP[:, :, ::-1] * 0.9, quality) - RAMP * 0.9).mean() for quality in (10, 50, 95)]
    assert errors[0] > errors[1] > errors[2] > 0
    assert np.allclose(spoil.jpeg(RAMP, 90) * 255, np.round(spoil.jpeg(RAMP, 90) * 255), atol=1e-4), "8 bits"


# BSRGAN's recipe

DRAWN = 4000


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[list]]:
    """{option: what `DRAWN` samples go through}, each step with its name and arguments."""
    found = {}
    for name in ("bsrgan", "bsrgan_light"):
        field = option(name)
        runs = (field.steps(generator(0, "bsrgan", number), (64, 96), (16, 24)) for number in range(DRAWN))
        found[name] = [[(step.func.__name__, step.keywords) for step in steps] for steps in runs]
    return found


BLURS, RESIZES = ("isotropic_blur", "anisotropic_blur", "sinc_filter"), ("bilinear", "bicubic", "area", "nearest")
HALVED = 0.25  # before all else, half of them antialiased
FIRST = {"bsrgan": 0.25, "bsrgan_light": 0.2}  # resizes that drop pixels
# How often each is met in one sample, by the published numbers.
EXPECTED = {
    "bsrgan": {"isotropic_blur": 0.9, "anisotropic_blur": 0.9, "sinc_filter": 0.2 + 0.8, "poisson_noise": 0.1,
               "speckle_noise": 0.1, "gaussian_noise": 1, "jpeg": 1.9},
    "bsrgan_light": {"isotropic_blur": 0.5, "anisotropic_blur": 0.5, "sinc_filter": 0, "poisson_noise": 0,
                     "speckle_noise": 0, "gaussian_noise": 1, "jpeg": 1.9},
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_each_kind_comes_as_often_as_published(name: str, drawn):
    counts = Counter(kind for steps in drawn[name] for kind, _ in steps)
    interpolated = HALVED / 2 + (1 - FIRST[name]) + 1  # the last resize never drops pixels
    expected = EXPECTED[name] | dict.fromkeys(("bilinear", "bicubic", "area"), interpolated / 3)
    expected |= {"nearest": FIRST[name], "bicubic_antialiased": HALVED / 2}
    assert counts.keys() <= expected.keys()
    for kind, rate in expected.items():
        assert counts[kind] / DRAWN == pytest.approx(rate, abs=4 * (max(rate, 0.1) / DRAWN) ** 0.5), kind


@pytest.mark.parametrize("name", EXPECTED)
def test_noise_and_quality_are_drawn_within_their_ranges(name: str, drawn):
    field, found = option(name), [step for steps in drawn[name] for step in steps]
    channels = Counter()
    for kind, told in found:
        if kind == "gaussian_noise":
            kinds = {"own": spoil.INDEPENDENT, "grey": spoil.GREY}
            which = [name for name, matrix in kinds.items() if told["channels"] is matrix]
            channels[which[0] if which else "correlated"] += 1
            assert field.noise[0] <= round(told["std"] * 255) <= field.noise[1]
    for which, share in {"own": 0.4, "grey": 0.4, "correlated": 0.2}.items():
        assert channels[which] / channels.total() == pytest.approx(share, abs=0.04)
    qualities = {told["quality"] for kind, told in found if kind == "jpeg"}
    assert qualities == set(range(field.quality[0], field.quality[1] + 1))
    sizes = {told["size"] for kind, told in found if kind.endswith("_blur")}
    assert sizes == set(range(field.kernel_size[0], field.kernel_size[1] + 1, 2)), "odd: nothing is moved"
    stds = [told["std"] for kind, told in found if kind == "isotropic_blur"]
    assert max(stds) == pytest.approx(2.8 * field.blur_scale, rel=0.02)
    cutoffs = [told["cutoff"] for kind, told in found if kind == "sinc_filter"]
    assert all(np.pi / 5 <= cutoff <= np.pi for cutoff in cutoffs)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_order_is_shuffled_but_for_what_comes_last(name: str, drawn):
    first, before = Counter(), 0
    for steps in drawn[name]:
        kinds = [kind for kind, _ in steps]
        assert set(kinds[-2:]) <= {"jpeg", "sinc_filter"} or kinds[-1] == "jpeg"
        sizes = [told["size"] for kind, told in steps if kind in RESIZES and kind != "nearest"]
        assert sizes[-1] == (16, 24), "to the final size in the end"
        if kinds[0] not in RESIZES and kinds[0] != "bicubic_antialiased":
            first[kinds[0]] += 1
        noise = kinds.index("gaussian_noise")
        before += any(kind in RESIZES for kind in kinds[noise:])
    assert {"isotropic_blur", "anisotropic_blur", "gaussian_noise", "jpeg"} <= first.keys(), "any of them may begin"
    assert min(first.values()) > 20 and 0.3 < before / DRAWN < 0.9, "noise before and after the resizes"
    if name == "bsrgan":
        ends = Counter(steps[-1][0] for steps in drawn[name])
        assert ends["sinc_filter"] / DRAWN == pytest.approx(0.4, abs=0.04), "before or after JPEG, equally often"


@pytest.mark.parametrize("name", ["bsrgan", "bsrgan_light", "bicubic_pil"])
def test_a_sample_s_own_window_and_number_decide_alone(name: str):
    field, kept = option(name), WINDOWS.clone()
    together = field.make(WINDOWS, NUMBERS)
    assert together.shape == (4, 3, 8, 12) and together.dtype == torch.float32 and together.abs().max() <= 1
    assert torch.equal(WINDOWS, kept)
    for place in range(4):
        assert torch.equal(field.make(WINDOWS[place : place + 1], NUMBERS[place : place + 1]), together[place][None])
    levels = (together + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=2e-3) or name == "bsrgan", "as a file holds it"
    with pytest.raises(ValueError, match=r"32x48: .*multiples of .*factor=5"):
        type(field)(**({"seed": 0} if isinstance(field, Bsrgan) else {}), factor=5).make(WINDOWS, NUMBERS)


def test_bsrgan_draws_by_its_seed():
    assert not torch.equal(Bsrgan(seed=0).make(WINDOWS, NUMBERS), Bsrgan(seed=1).make(WINDOWS, NUMBERS))
    same = WINDOWS[:1].expand(4, -1, -1, -1)
    made = Bsrgan(seed=0).make(same, torch.arange(4))
    assert len({tuple(image.flatten().tolist()) for image in made}) == 4


def test_height_and_width_are_not_swapped():
    """The public code cuts to the width's multiples in height: of 32 x 48 it would leave 32 x 32."""
    wide = torch.linspace(-1, 1, 48).expand(8, 3, 32, 48)
    for made in (Bsrgan(seed=0).make(wide, torch.arange(8)), option("bsrgan_light").make(wide, torch.arange(8))):
        left, right = made[..., :3].mean(), made[..., -3:].mean()
        assert right - left > 1.1, "all of the width is there"
        assert (made.mean((0, 1, 2)).diff() > 0).float().mean() > 0.8


@pytest.mark.parametrize("factor", [2, 3, 8])
def test_other_factors_give_their_size(factor: int):
    windows = torch.rand(30, 3, 48, 24) * 2 - 1
    assert Bsrgan(0, factor=factor).make(windows, torch.arange(30)).shape == (30, 3, 48 // factor, 24 // factor)


def test_light_is_nearer_to_the_clean_picture_than_full():
    smooth = torch.nn.functional.interpolate(WINDOWS[:, :, ::8, ::8], (32, 48), mode="bicubic").clamp(-1, 1)
    clean = option("low_resolution").make(smooth, NUMBERS)
    errors = [
        torch.stack([(option(name).make(smooth, NUMBERS + 10 * more) - clean).abs().mean() for more in range(10)])
        for name in ("bicubic_pil", "bsrgan_light", "bsrgan")
    ]
    assert errors[0].max() < 0.01 and errors[0].mean() < errors[1].mean() < 0.8 * errors[2].mean()


def test_pil_s_bicubic_is_what_its_file_would_hold():
    window = ((WINDOWS + 1) * 127.5).round()
    expected = Image.fromarray(window[0].byte().permute(1, 2, 0).numpy()).resize((12, 8), Image.Resampling.BICUBIC)
    low = PilBicubic(4).make(window / 127.5 - 1, NUMBERS)[0]
    assert torch.equal(((low + 1) * 127.5).round().byte().permute(1, 2, 0), torch.from_numpy(np.array(expected)))


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"sinc_prob": 1.5}, "sinc_prob=1.5 is not a probability"),
        ({"quality": [95, 30]}, r"quality=\[95, 30\] has to be two numbers of 1 to 95"),
        ({"kernel_size": [7]}, r"kernel_size=\[7\] has to be two"),
        ({"noise": [2, 300]}, r"noise=\[2, 300\]"),
        ({"num_blurs": -1}, "num_blurs=-1"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict, problem: str):
    with pytest.raises(ValueError, match=problem):
        Bsrgan(0, **wrong)
