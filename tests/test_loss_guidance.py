"""Guidance by likelihoods: Bayes' rule in closed form, gradients through decoder and network, limits and order."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_sample import pixels
from toys import train
from untrained import untrained_run

from ldm.config import overriding
from ldm.diffusion import operators
from ldm.diffusion.guidance import Bound, ClassifierFree
from ldm.diffusion.limits import Limits
from ldm.diffusion.loss_guidance import AlignmentGuidance, ClassifierGuidance, HalfSquaredError, ImageGuidance, fitted
from ldm.diffusion.samplers import heun
from ldm.diffusion.sigmas import karras
from ldm.first_stage.regularizers import VQ
from ldm.run import Run
from sample import main

B = 5
SIGMA = torch.tensor([0.05, 0.4, 1.0, 3.0, 20.0])
X = torch.randn(B, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * (1 + SIGMA**2).sqrt().view(-1, 1, 1, 1)


def column(value: torch.Tensor) -> torch.Tensor:
    return value.view(-1, 1, 1, 1)


def gaussian(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The denoiser of x0 ~ N(0, 1)."""
    return x / (1 + column(sigma) ** 2)


def bound(denoise=gaussian, **batch) -> Bound:
    return Bound(denoise, lambda names: denoise, (), batch, B, lambda z: z)


class Mixture(torch.nn.Module):
    """Classes at means -m and +m (every value), unit variance each: its exact classifier and its denoisers."""

    num_classes = 2

    def __init__(self, mean: float):
        super().__init__()
        self.means = torch.tensor([-mean, mean])

    @property
    def network(self):
        return self

    def log_prob(self, x, sigma, label):
        joint = torch.stack([-(x - m).square().flatten(1).sum(1) / (2 * (1 + sigma**2)) for m in self.means], 1)
        return joint.log_softmax(1).gather(1, label[:, None])[:, 0]

    def of_class(self, label):
        m = column(self.means[label])
        return lambda x, sigma: m + (x - m) / (1 + column(sigma) ** 2)

    def unconditional(self, x, sigma):
        weights = torch.stack([self.log_prob(x, sigma, torch.full((len(x),), c)).exp() for c in (0, 1)])
        parts = [self.of_class(torch.full((len(x),), c))(x, sigma) for c in (0, 1)]
        return sum(column(w) * part for w, part in zip(weights, parts, strict=True))


# Bayes' rule


def test_an_exact_classifier_at_scale_1_turns_the_unconditional_denoiser_into_the_class_s():
    mixture, label = Mixture(0.3), torch.tensor([0, 1, 0, 1, 1])
    model = bound(mixture.unconditional, label=label)
    guided = ClassifierGuidance(1.0, mixture).guide(model)(X, SIGMA)
    torch.testing.assert_close(guided, mixture.of_class(label)(X, SIGMA), rtol=1e-4, atol=1e-4)
    assert (guided - mixture.unconditional(X, SIGMA)).abs().max() > 0.05


def test_a_gaussian_likelihood_gives_the_posterior_mean():
    """x0 ~ N(0, 1), y = x0 + noise of variance r: with the scale 1 / (v + r), v = Var(x0 | x), it is exact."""
    target, r = torch.randn(B, 3, 2, 2, generator=torch.Generator().manual_seed(1)).clamp(-1, 1), 0.1
    for place in range(B):
        sigma = SIGMA[place].expand(B)
        v = (SIGMA[place] ** 2 / (1 + SIGMA[place] ** 2)).item()
        guidance = ImageGuidance(1 / (v + r), operators.identity, HalfSquaredError())
        precision = 1 + 1 / SIGMA[place] ** 2 + 1 / r
        expected = (X / SIGMA[place] ** 2 + target / r) / precision
        torch.testing.assert_close(guidance.guide(bound(target=target))(X, sigma), expected, rtol=1e-4, atol=1e-5)


def test_samples_follow_the_target():
    target = torch.full((B, 3, 2, 2), 0.8)
    denoise = ImageGuidance(5.0, operators.identity, HalfSquaredError()).guide(bound(target=target))
    sigmas = karras(num_steps=30, sigma_min=0.02, sigma_max=20.0)
    free, led = (heun(d, 20 * X / (1 + column(SIGMA) ** 2).sqrt(), sigmas) for d in (gaussian, denoise))
    assert (led - target).abs().mean() < 0.4 * (free - target).abs().mean()


# Gradients


def test_the_gradient_is_that_of_the_likelihood_through_decoder_operator_and_network():
    def denoise(x, sigma):
        return gaussian(x, sigma).sin()

    def decode(z):
        return (2 * z).tanh()

    target = torch.zeros(B, 3, 1, 1) + 0.3
    model = Bound(denoise, lambda names: denoise, (), {"target": target}, B, decode)
    guidance = ImageGuidance(0.7, lambda image: operators.bicubic(image, factor=2), HalfSquaredError())
    x = X.double()
    with torch.no_grad():
        found = guidance.guide(model)(x, SIGMA.double())
    step = torch.zeros_like(x)
    step[:, 1, 0, 1] = 1e-5

    def log_prob(x):
        return -0.5 * (operators.bicubic(decode(denoise(x, SIGMA)), factor=2) - target).square().flatten(1).sum(1)

    slope = (log_prob(x + step) - log_prob(x - step)) / 2e-5
    expected = denoise(x, SIGMA)[:, 1, 0, 1] + 0.7 * SIGMA**2 * slope
    torch.testing.assert_close(found[:, 1, 0, 1], expected, rtol=1e-4, atol=1e-6)
    assert not found.requires_grad


def test_a_later_likelihood_sees_through_an_earlier_one():
    target = torch.full((B, 3, 2, 2), 0.5)
    first = ImageGuidance(0.2, operators.identity, HalfSquaredError())
    model = bound(target=target)
    once = first.guide(model)
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(once(x, SIGMA).sum(), x)
    torch.testing.assert_close(gradient, (1 / (1 + column(SIGMA) ** 2)).expand_as(X))  # D's own slope
    twice = first.guide(Bound(once, model.given, (), model.batch, B, model.decode))(X, SIGMA)
    slope = 1 / (1 + column(SIGMA) ** 2)
    expected = once(X, SIGMA) - 0.2 * column(SIGMA) ** 2 * slope * (once(X, SIGMA) - target)
    torch.testing.assert_close(twice, expected, rtol=1e-4, atol=1e-5)


def test_quantised_latents_pass_gradients_straight_through_and_stay_codes():
    torch.manual_seed(0)
    vq = VQ(4, 16)
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    codes = vq.quantise(z)
    assert torch.equal(codes, vq.lookup(vq.indices(z)))
    (gradient,) = torch.autograd.grad((codes * 3).sum(), z)
    assert torch.equal(gradient, torch.full_like(z, 3.0))


class Brightness(torch.nn.Module):
    """A cosine that knows two words."""

    def forward(self, images, captions):
        signs = torch.tensor([1.0 if caption == "bright" else -1.0 for caption in captions])
        return signs * images.mean((1, 2, 3)).tanh()


def test_alignment_leads_each_sample_towards_its_own_caption():
    captions = ["bright", "dark", "bright", "dark", "bright"]
    guided = AlignmentGuidance(10.0, Brightness()).guide(bound(caption=captions))(X, SIGMA)
    change = (guided - gaussian(X, SIGMA)).mean((1, 2, 3))
    assert ((change > 0) == torch.tensor([caption == "bright" for caption in captions])).all()


# Limits, identities, mistakes


def kinds() -> dict[str, tuple]:
    return {
        "classifier": (lambda scale, limits=None: ClassifierGuidance(scale, Mixture(0.3), limits),
                       bound(Mixture(0.3).unconditional, label=torch.tensor([0, 1, 0, 1, 1]))),
        "image": (lambda scale, limits=None: ImageGuidance(scale, operators.identity, HalfSquaredError(), limits),
                  bound(target=torch.zeros(B, 3, 2, 2))),
        "alignment": (lambda scale, limits=None: AlignmentGuidance(scale, Brightness(), limits),
                      bound(caption=["bright"] * B)),
    }  # fmt: skip


@pytest.mark.parametrize("kind", kinds())
def test_scale_0_is_the_identity_and_limits_hold(kind):
    make, model = kinds()[kind]
    assert make(0.0).guide(model) is model.denoise
    plain, whole = model.denoise(X, SIGMA), make(0.5).guide(model)(X, SIGMA)
    assert (whole - plain).flatten(1).abs().amax(1).gt(1e-5).all()
    inside = make(0.5, Limits(sigma_lo=0.4, sigma_hi=3.0)).guide(model)(X, SIGMA)
    assert torch.equal(inside[[0, 3, 4]], plain[[0, 3, 4]]) and torch.equal(inside[1:3], whole[1:3])
    half = make(0.5, Limits(profile=[[0.1, 0.5], [1.0, 0.5]])).guide(model)(X, SIGMA)
    torch.testing.assert_close(half, (plain + whole) / 2)
    one = make(0.5, Limits(channels=[2])).guide(model)(X, SIGMA)
    assert torch.equal(one[:, :2], plain[:, :2]) and torch.equal(one[:, 2], whole[:, 2])
    with pytest.raises(ValueError, match=rf"loss_guidance\.{kind}\.scale: must be finite"):
        make(math.nan)


@pytest.mark.parametrize("kind", kinds())
def test_a_sample_does_not_depend_on_its_batch(kind):
    make, model = kinds()[kind]
    whole = make(0.5).guide(model)(X, SIGMA)
    batch = {name: value[3:] for name, value in model.batch.items()}
    part = make(0.5).guide(Bound(model.denoise, model.given, (), batch, 2, model.decode))(X[3:], SIGMA[3:])
    torch.testing.assert_close(whole[3:], part)


@pytest.mark.parametrize("kind", kinds())
def test_what_it_needs_is_asked_for(kind):
    make, model = kinds()[kind]
    word = "prompt" if kind == "alignment" else next(iter(model.batch))
    with pytest.raises(ValueError, match=rf"loss_guidance={kind} needs .*; give {word}="):
        make(1.0).guide(bound(model.denoise))


def test_a_class_that_the_classifier_does_not_know_is_named():
    with pytest.raises(ValueError, match=r"label=2: the classifier tells 2 classes apart, 0\.\.1"):
        ClassifierGuidance(1.0, Mixture(0.3)).guide(bound(label=torch.tensor([0, 1, 2, 0, 0])))


def test_it_comes_after_the_guidance_that_compares():
    target = torch.zeros(B, 3, 2, 2)
    model = Bound(gaussian, lambda names: lambda x, sigma: 0 * x, ("text",), {"target": target}, B, lambda z: z)
    compared = ClassifierFree(2.0).guide(model)
    led = ImageGuidance(0.1, operators.identity, HalfSquaredError()).guide(
        Bound(compared, model.given, model.conditions, model.batch, B, model.decode)
    )(X, SIGMA)
    slope = 2 / (1 + column(SIGMA) ** 2)
    torch.testing.assert_close(led, slope * X - 0.1 * column(SIGMA) ** 2 * slope * (slope * X))


# Operators and targets


def test_operators_keep_what_they_say():
    image = torch.rand(2, 3, 8, 8) * 2 - 1
    assert torch.equal(operators.identity(image), image)
    assert operators.bicubic(image, factor=4).shape == (2, 3, 2, 2)
    torch.testing.assert_close(operators.bicubic(torch.full_like(image, 0.3), factor=2), torch.full((2, 3, 4, 4), 0.3))
    shade = operators.grey(image)
    torch.testing.assert_close(operators.grey(shade), shade)
    torch.testing.assert_close(operators.blur(torch.full_like(image, 0.3), std=2.0), torch.full_like(image, 0.3))
    spot = torch.zeros(1, 2, 15, 17)
    spot[0, 1, 7, 8] = 1.0
    seen, places = operators.blur(spot, std=1.5)[0, 1], torch.arange(17.0) - 8
    assert seen.sum() == pytest.approx(1) and (seen.sum(0) * places.square()).sum() == pytest.approx(1.5**2, rel=0.02)
    torch.testing.assert_close(seen.sum(1), seen.sum(0)[1:-1])
    assert torch.equal(operators.box(image, 0.25, 0.5, 0.5, 0.25), image[..., 2:6, 4:6])
    with pytest.raises(ValueError, match=r"operator\.factor=3: must divide"):
        operators.bicubic(image, factor=3)
    for std in (0.0, -1.0, 99.0):
        with pytest.raises(ValueError, match=r"operator\.std=.*: must be above 0"):
            operators.blur(image, std)
    with pytest.raises(ValueError, match=r"operator=box: .* is no box inside the image"):
        operators.box(image, 0.75, 0.0, 0.5, 1.0)


def test_targets_are_cropped_to_shape_and_resized():
    wide = torch.zeros(1, 3, 8, 16)
    wide[..., 4:12] = 1.0  # the middle square
    assert torch.equal(fitted(wide, (8, 16)), wide)
    torch.testing.assert_close(fitted(wide, (4, 4)), torch.ones(1, 3, 4, 4))
    assert fitted(wide, (24, 8)).shape == (1, 3, 24, 8)


# Whole


def made(model: Path, out: Path, *words: str) -> np.ndarray:
    assert main(overriding([f"model={model}", f"out={out}", "num_images=2", "num_steps=4", *words])) == 0
    return np.stack([image for name, image in pixels(out).items() if name != "grid.png"])


def test_a_sample_is_led_to_an_image_file(tmp_path: Path):
    model = untrained_run(tmp_path / "free", "conditioner=[]")
    Image.new("RGB", (20, 10), (255, 0, 0)).save(tmp_path / "a, red.png")
    words = ["guidance.scale=1", "loss_guidance=[image]", f"target={tmp_path}/a, red.png"]
    plain = made(model, tmp_path / "plain", "guidance.scale=1")
    red = np.array([255, 0, 0])
    for name, more in {"whole": [], "low": ["operator=bicubic", "operator.factor=2"], "box": ["operator=box"]}.items():
        led = made(model, tmp_path / name, *words, "loss_guidance.image.scale=3", *more)
        assert np.abs(led - red).mean() < 0.9 * np.abs(plain - red).mean(), name
    assert np.array_equal(made(model, tmp_path / "zero", *words, "loss_guidance.image.scale=0"), plain)
    with pytest.raises(ValueError, match=r"lpips_vgg compares images of one shape, 16 px or more"):
        made(model, tmp_path / "lpips", *words, "distance=lpips")
    with pytest.raises(ValueError, match="target: this model reads no target"):
        made(model, tmp_path / "x", "guidance.scale=1", f"target={tmp_path}/a, red.png")
    with pytest.raises(ValueError, match=r"loss_guidance=image needs 'target'; give target="):
        made(model, tmp_path / "x", "guidance.scale=1", "loss_guidance=[image]")
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"target=.*no\.png: broken image"):
        made(model, tmp_path / "x", *words[:2], f"target={tmp_path}/no.png")


def test_a_classifier_and_a_caption_lead_samples_of_a_trained_model(diffusion: Run, classifier: Run, tmp_path: Path):
    def drawn(name: str, *words: str) -> np.ndarray:
        return made(diffusion.folder, tmp_path / name, "prompt=key", "guidance.scale=1", *words)

    plain = drawn("plain")
    words = ["loss_guidance=[classifier]", f"classifier={classifier.folder}", "label=3"]
    led = drawn("led", *words, "loss_guidance.classifier.scale=300")
    assert np.abs(led - plain).max() > 2
    assert np.array_equal(drawn("zero", *words, "loss_guidance.classifier.scale=0"), plain)
    aligned = drawn("aligned", "loss_guidance=[alignment]")
    assert np.abs(aligned - plain).max() > 2
    both = drawn("both", "loss_guidance=[classifier,alignment]", *words[1:])
    assert np.abs(both - aligned).max() > 0
    with pytest.raises(ValueError, match=r"goes by a classifier of noisy latents; .* classifier=runs/NAME"):
        drawn("x", "loss_guidance=[classifier]", "label=3")
    with pytest.raises(ValueError, match=r"classifier=.*: only loss_guidance=\[classifier\] takes it"):
        drawn("x", f"classifier={classifier.folder}")
    with pytest.raises(ValueError, match="label=9: the classifier tells 9 classes apart"):
        drawn("x", *words[:2], "label=9")
    with pytest.raises(ValueError, match=r"classifier=.*: not a classifier's run"):
        drawn("x", words[0], f"classifier={diffusion.folder}", "label=3")


def test_a_classifier_of_other_latents_does_not_guide(other_first_stage: Run, classifier: Run, tmp_path: Path):
    model = train("quickstart/diffusion", tmp_path, f"first_stage={other_first_stage.folder}")
    with pytest.raises(ValueError, match=r"classifier=.*made for other latents than the model's"):
        made(model.folder, tmp_path / "x", "prompt=key", "loss_guidance=[classifier]",
             f"classifier={classifier.folder}", "label=3")  # fmt: skip
