"""Guidance: linear between reference and condition, identities at 1 and 0, limited to its interval."""

import math

import pytest
import torch

from ldm.diffusion.guidance import ClassifierFree

X = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
SIGMA = torch.tensor([0.1, 1.0, 2.0, 5.0])


def conditional(x, sigma):
    return 0.5 * x + 1


def unconditional(x, sigma):
    return 0.25 * x


def never(x, sigma):
    raise AssertionError("must not be called")


@pytest.mark.parametrize("scale", [-1.0, 0.3, 1.5, 7.5])
def test_guidance_extrapolates_from_the_reference(scale):
    expected = unconditional(X, SIGMA) + scale * (conditional(X, SIGMA) - unconditional(X, SIGMA))
    torch.testing.assert_close(ClassifierFree(scale)(conditional, unconditional)(X, SIGMA), expected)


def test_scale_1_is_the_identity_and_never_calls_the_reference():
    for guidance in (ClassifierFree(1.0), ClassifierFree(1.0, sigma_lo=0.5, sigma_hi=2.0)):
        assert torch.equal(guidance(conditional, never)(X, SIGMA), conditional(X, SIGMA))


def test_scale_0_is_the_reference_and_never_calls_the_condition():
    assert torch.equal(ClassifierFree(0.0)(never, unconditional)(X, SIGMA), unconditional(X, SIGMA))


def test_the_interval_is_half_open_and_the_condition_rules_outside():
    guidance = ClassifierFree(3.0, sigma_lo=1.0, sigma_hi=5.0)
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
    plain, whole, half = (ClassifierFree(6.0, rescale=r)(conditional, unconditional)(X, SIGMA) for r in (0.0, 1.0, 0.5))
    torch.testing.assert_close(whole.flatten(1).std(1), conditional(X, SIGMA).flatten(1).std(1))
    torch.testing.assert_close(half, (plain + whole) / 2)
    assert torch.equal(plain, ClassifierFree(6.0)(conditional, unconditional)(X, SIGMA))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="rescale"):
        ClassifierFree(2.0, rescale=1.5)
    with pytest.raises(ValueError, match="scale"):
        ClassifierFree(math.nan)
    with pytest.raises(ValueError, match="sigma_lo"):
        ClassifierFree(2.0, sigma_lo=3.0, sigma_hi=1.0)
