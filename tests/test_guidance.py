"""Guidance: linear between what it compares, identities at 1 and 0, limited in noise, channels and strength."""

import math

import pytest
import torch

from ldm.diffusion.guidance import Autoguidance, Bound, ClassifierFree, PerCondition
from ldm.diffusion.limits import Limits

X = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
SIGMA = torch.tensor([0.1, 1.0, 2.0, 5.0])


def conditional(x, sigma):
    return 0.5 * x + 1


def unconditional(x, sigma):
    return 0.25 * x


def never(x, sigma):
    raise AssertionError("must not be called")


EFFECTS = {"image": 0.5, "text": -2.0, "label": 0.25}


def bound(*conditions: str) -> tuple[Bound, list[frozenset[str]]]:
    """A denoiser whose conditions neither add up nor commute with its input, and what is asked of it."""
    asked = []

    def given(names):
        chosen = frozenset(names)
        value = sum(EFFECTS[name] for name in chosen)

        def denoise(x, sigma):
            asked.append(chosen)
            return 0.5 * x + math.sin(3 * value) * x.sin() + value

        return denoise

    return Bound(given(conditions), given, conditions, {}, len(X), lambda z: z), asked


@pytest.mark.parametrize("scale", [-1.0, 0.3, 1.5, 7.5])
def test_guidance_extrapolates_from_the_reference(scale):
    expected = unconditional(X, SIGMA) + scale * (conditional(X, SIGMA) - unconditional(X, SIGMA))
    torch.testing.assert_close(ClassifierFree(scale)(conditional, unconditional)(X, SIGMA), expected)


def test_scale_1_is_the_identity_and_never_calls_the_reference():
    for guidance in (ClassifierFree(1.0), ClassifierFree(1.0, Limits(sigma_lo=0.5, sigma_hi=2.0))):
        assert torch.equal(guidance(conditional, never)(X, SIGMA), conditional(X, SIGMA))


def test_scale_0_is_the_reference_and_never_calls_the_condition():
    assert torch.equal(ClassifierFree(0.0)(never, unconditional)(X, SIGMA), unconditional(X, SIGMA))


def test_the_interval_is_half_open_and_the_condition_rules_outside():
    guidance = ClassifierFree(3.0, Limits(sigma_lo=1.0, sigma_hi=5.0))
    result = guidance(conditional, unconditional)(X, SIGMA)
    inside = ClassifierFree(3.0)(conditional, unconditional)(X, SIGMA)
    assert torch.equal(result[1:3], inside[1:3])
    assert torch.equal(result[[0, 3]], conditional(X, SIGMA)[[0, 3]])
    for sigma in (0.1, 5.0, 80.0):
        level = torch.full((4,), sigma)
        assert torch.equal(guidance(conditional, never)(X, level), conditional(X, level))


def test_guidance_on_the_denoiser_is_guidance_on_the_network():
    c_skip, c_out = 0.3, -1.7
    network_c, network_u = torch.randn(2, *X.shape, generator=torch.Generator().manual_seed(1))
    guided = ClassifierFree(4.0)(
        lambda x, s: c_skip * x + c_out * network_c, lambda x, s: c_skip * x + c_out * network_u
    )
    network = network_u + 4.0 * (network_c - network_u)
    torch.testing.assert_close(guided(X, SIGMA), c_skip * X + c_out * network, rtol=1e-4, atol=1e-5)


def test_rescaling_gives_each_sample_the_deviation_of_the_conditional_one():
    plain, whole, half = (
        ClassifierFree(6.0, Limits(rescale=r))(conditional, unconditional)(X, SIGMA) for r in (0.0, 1.0, 0.5)
    )
    torch.testing.assert_close(whole.flatten(1).std(1), conditional(X, SIGMA).flatten(1).std(1))
    torch.testing.assert_close(half, (plain + whole) / 2)
    assert torch.equal(plain, ClassifierFree(6.0)(conditional, unconditional)(X, SIGMA))


# Limits


@pytest.mark.parametrize(
    ("sigma", "share"), [(0.01, 2.0), (0.1, 2.0), (1.0, 1.0), (10.0, 0.5), (100.0, 0.0), (1e4, 0.0)]
)
def test_a_profile_is_linear_in_the_logarithm_of_sigma_and_constant_beyond_its_points(sigma, share):
    profile, level = [[0.1, 2.0], [1.0, 1.0], [100.0, 0.0]], torch.full((4,), sigma)
    result = ClassifierFree(3.0, Limits(profile=profile))(conditional, unconditional)(X, level)
    scale = 1 + (3.0 - 1) * share
    torch.testing.assert_close(result, ClassifierFree(scale)(conditional, unconditional)(X, level))


def test_a_profile_holds_for_each_sample_and_where_it_is_0_nothing_is_compared():
    guidance = ClassifierFree(3.0, Limits(profile=[[1.0, 1.0], [2.0, 0.0]]))
    result = guidance(conditional, unconditional)(X, SIGMA)
    torch.testing.assert_close(result[:2], ClassifierFree(3.0)(conditional, unconditional)(X, SIGMA)[:2])
    assert torch.equal(result[2:], conditional(X, SIGMA)[2:])
    assert torch.equal(guidance(conditional, never)(X, SIGMA + 2), conditional(X, SIGMA))


def test_only_the_named_channels_are_guided():
    result = ClassifierFree(3.0, Limits(channels=[1]))(conditional, unconditional)(X, SIGMA)
    assert torch.equal(result[:, 0], conditional(X, SIGMA)[:, 0])
    assert torch.equal(result[:, 1], ClassifierFree(3.0)(conditional, unconditional)(X, SIGMA)[:, 1])
    flat = X.flatten(1)[:, :2]
    assert torch.equal(
        ClassifierFree(3.0, Limits(channels=[0]))(conditional, unconditional)(flat, SIGMA)[:, 1], 0.5 * flat[:, 1] + 1
    )


def test_the_limits_are_applied_in_their_declared_order():
    limited = Limits(0.5, 4.0, 1.0, [[0.5, 0.5], [4.0, 0.5]], [0]).apply(
        conditional, lambda x, sigma, d: torch.lerp(unconditional(x, sigma), d, 5.0)
    )(X, SIGMA)
    expected = conditional(X, SIGMA)
    share = ClassifierFree(3.0)(conditional, unconditional)(X, SIGMA)  # half of the way to scale 5
    mixed = torch.stack([share[:, 0], expected[:, 1]], dim=1)
    ratio = expected.flatten(1).std(1) / mixed.flatten(1).std(1)
    torch.testing.assert_close(limited[1:3], (mixed * ratio.view(-1, 1, 1, 1))[1:3])
    assert torch.equal(limited[[0, 3]], expected[[0, 3]])


# Several conditions


def test_each_condition_has_its_scale_in_chained_differences():
    model, _ = bound("image", "text", "label")
    result = PerCondition({"text": 3.0, "image": 1.5}).guide(model)(X, SIGMA)
    no, text, both = (
        model.given(names)(X, SIGMA) for names in (["label"], ["label", "text"], ["label", "text", "image"])
    )
    torch.testing.assert_close(result, no + 3.0 * (text - no) + 1.5 * (both - text))
    other_order = PerCondition({"image": 1.5, "text": 3.0}).guide(model)(X, SIGMA)
    assert (result - other_order).abs().max() > 0.1


@pytest.mark.parametrize("scale", [0.0, 0.7, 4.0])
def test_equal_scales_are_joint_guidance_at_its_costs(scale):
    model, asked = bound("image", "text")
    guidance = PerCondition({"image": scale, "text": scale})
    torch.testing.assert_close(guidance.guide(model)(X, SIGMA), ClassifierFree(scale).guide(model)(X, SIGMA))
    asked.clear()
    guidance.guide(model)(X, SIGMA)
    assert asked == [{"image", "text"}, set()]
    mixed = PerCondition({"image": 2.0, "text": 9.0})
    assert mixed.with_scale(scale).scales == guidance.scales
    assert mixed.scale is None and guidance.scale == scale


def test_scales_of_1_compare_nothing_and_one_condition_is_evaluated_twice():
    model, asked = bound("image", "text")
    assert PerCondition({"image": 1.0, "text": 1.0}).guide(model) is model.denoise
    PerCondition({"image": 1.0, "text": 2.0}).guide(model)(X, SIGMA)
    assert asked == [{"image", "text"}, {"image"}]


def test_conditions_and_models_that_are_not_there_are_named():
    model, _ = bound("image", "text")
    with pytest.raises(ValueError, match="no condition txt; the conditions of this model: image, text"):
        PerCondition({"image": 2.0, "txt": 2.0}).guide(model)
    nothing, _ = bound()
    with pytest.raises(ValueError, match=r"no condition text; .*: none"):
        PerCondition({"text": 2.0}).guide(nothing)
    with pytest.raises(ValueError, match=r"no conditions to guide by; sample with guidance\.scale=1"):
        ClassifierFree(3.0).guide(nothing)
    assert ClassifierFree(1.0).guide(nothing) is nothing.denoise


# A second network


def test_autoguidance_leads_away_from_the_worse_network():
    model, asked = bound("text")
    weak = Autoguidance(2.5, lambda given: unconditional if given is model else never, Limits(sigma_lo=1.0))
    result = weak.guide(model)(X, SIGMA)
    expected = unconditional(X, SIGMA) + 2.5 * (model.denoise(X, SIGMA) - unconditional(X, SIGMA))
    torch.testing.assert_close(result[1:], expected[1:])
    assert torch.equal(result[0], model.denoise(X, SIGMA)[0])
    assert set().union(*asked) == {"text"}, "nothing is dropped"
    assert weak.with_scale(1.0).guide(model) is model.denoise


# Gradients

LIMITS = Limits(sigma_lo=0.5, profile=[[1.0, 1.0], [5.0, 0.5]], channels=[0])


@pytest.mark.parametrize("limits", [None, LIMITS], ids=["plain", "limited"])
@pytest.mark.parametrize("kind", ["classifier_free", "per_condition", "autoguidance"])
def test_gradients_flow_as_in_closed_form(kind, limits):
    """A Gaussian of variance v has D = m + v (x - m) / (v + sigma^2), so that dD/dx = v / (v + sigma^2)."""
    variances = {frozenset(): 4.0, frozenset({"a"}): 1.0, frozenset({"a", "b"}): 0.25}

    def slope(v):
        return v / (v + SIGMA**2)

    def gaussian(names):
        v = variances[frozenset(names)]
        return lambda x, sigma: 0.3 * v + (v / (v + sigma**2)).view(-1, 1, 1, 1) * (x - 0.3 * v)

    model = Bound(gaussian("ab"), gaussian, ("a", "b"), {}, len(X), lambda z: z)
    none, a, both = slope(4.0), slope(1.0), slope(0.25)
    guidance, expected = {
        "classifier_free": (ClassifierFree(3.0, limits), none + 3 * (both - none)),
        "per_condition": (PerCondition({"a": 3.0, "b": 2.0}, limits), none + 3 * (a - none) + 2 * (both - a)),
        "autoguidance": (Autoguidance(3.0, lambda given: gaussian("a"), limits), a + 3 * (both - a)),
    }[kind]
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(guidance.guide(model)(x, SIGMA).sum(), x)
    expected = expected[:, None].repeat(1, 2)
    if limits:
        share = torch.tensor([0.0, 1.0, 1 - 0.5 * math.log(2) / math.log(5), 0.5])
        expected = both[:, None] + torch.stack([share, torch.zeros(4)], 1) * (expected - both[:, None])
    torch.testing.assert_close(gradient, expected[..., None, None].expand_as(X))


# Mistakes


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="rescale"):
        ClassifierFree(2.0, Limits(rescale=1.5))
    with pytest.raises(ValueError, match="scale"):
        ClassifierFree(math.nan)
    with pytest.raises(ValueError, match="sigma_lo"):
        ClassifierFree(2.0, Limits(sigma_lo=3.0, sigma_hi=1.0))
    with pytest.raises(ValueError, match=r"guidance\.scales\.text: must be finite"):
        PerCondition({"text": math.inf})
    with pytest.raises(ValueError, match="scales: names no condition"):
        PerCondition({})
    with pytest.raises(ValueError, match="scale"):
        Autoguidance(math.nan, lambda given: never)
    for profile in (
        [],
        [[1.0, 1.0]],
        [[1.0], [2.0]],
        [[2.0, 1.0], [1.0, 0.0]],
        [[0.0, 1.0], [1.0, 0.0]],
        [[1.0, -1.0], [2.0, 0.0]],
    ):
        with pytest.raises(ValueError, match=r"limits\.profile: needs at least two points"):
            ClassifierFree(2.0, Limits(profile=profile))
    for channels in ([], [-1], [0, 0]):
        with pytest.raises(ValueError, match="channels"):
            ClassifierFree(2.0, Limits(channels=channels))
    with pytest.raises(ValueError, match=r"limits\.channels=\[0, 2\]: the latents of this model have channels 0\.\.1"):
        ClassifierFree(2.0, Limits(channels=[0, 2]))(conditional, unconditional)(X, SIGMA)
