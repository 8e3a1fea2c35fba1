"""LPIPS: the published values, and what a loss needs of it."""

import lpips as published
import pytest
import torch

from ldm.networks.lpips import LPIPS, pretrained_lpips

GOLDEN = {"vgg": 0.34852, "alex": 0.14856}  # of the published weights, mean over the pair below


@pytest.fixture(scope="module", params=["alex", "vgg"])
def net(request):
    return request.param


@pytest.fixture(scope="module")
def metric(net):
    return pretrained_lpips(net)


@pytest.fixture(scope="module")
def pair():
    with torch.random.fork_rng():
        torch.manual_seed(123)
        return torch.rand(10, 3, 100, 100) * 2 - 1, torch.rand(10, 3, 100, 100) * 2 - 1


@torch.no_grad()
def test_golden_value(net, metric, pair):
    distance = metric(*pair)
    assert distance.shape == (10,)
    assert distance.mean().item() == pytest.approx(GOLDEN[net], abs=6e-6)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_equals_the_lpips_package_with_the_same_trunk(net, metric, pair):
    reference = published.LPIPS(net=net, pnet_rand=True, verbose=False).eval()  # its heads come with the package
    trunk = metric.features.state_dict().values()
    for theirs, ours in zip(reference.net.parameters(), trunk, strict=True):
        theirs.copy_(ours)
    a, b = pair[0][:3, :, :64, :70], pair[1][:3, :, :64, :70]
    assert torch.allclose(reference(a, b).flatten(), metric(a, b), atol=1e-6)


@torch.no_grad()
def test_zero_on_equals_symmetric_and_per_image(metric, pair):
    a, b = pair[0][:2, :, :32, :32], pair[1][:2, :, :32, :32]
    assert metric(a, a).abs().max() == 0
    assert torch.allclose(metric(a, b), metric(b, a))
    assert torch.allclose(metric(a, b)[1:], metric(a[1:], b[1:]), atol=1e-6)
    nearer = a + 0.1 * (b - a)
    assert (metric(a, nearer) < metric(a, b)).all()


def test_gradients_reach_the_images_only_and_stay_finite(metric, pair):
    x = torch.zeros(2, 3, 32, 32, requires_grad=True)  # flat: whole feature vectors are zero somewhere
    metric(x, pair[0][:2, :, :32, :32]).sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in metric.parameters())


def test_bf16_autocast_changes_little_and_returns_fp32(metric, pair):
    a, b = pair[0][:2, :, :64, :64], pair[1][:2, :, :64, :64]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        low = metric(a, b)
    assert low.dtype == torch.float32 and torch.allclose(low, metric(a, b), rtol=0.02)


@torch.no_grad()
def test_smallest_size_works_and_below_is_refused(metric):
    size = metric.min_size
    a = torch.zeros(1, 3, size, size)
    assert metric(a, a + 0.5).item() > 0
    with pytest.raises(ValueError, match=f"{size} px or more"):
        metric(a[..., 1:], a[..., 1:])
    with pytest.raises(ValueError, match="one shape"):
        metric(a, torch.zeros(1, 3, size + 1, size))


def test_unknown_trunk_and_missing_file_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"net='squeeze'.*alex and vgg"):
        LPIPS("squeeze")
    with pytest.raises(ValueError, match="no weights for 'lpips_alex'"):
        pretrained_lpips("alex", tmp_path / "none.safetensors")
