"""The same images measured by torch-fidelity and resized by clean-fid: arithmetic and pre-processing, not networks.

Inception's weights are random here, its norms set to what they see, so that features differ from image to image.
"""

import warnings
from pathlib import Path

import pytest
import torch
from cleanfid.resize import build_resizer
from torch import nn
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from ldm.metrics.features import InceptionFeatures, inception_features
from ldm.metrics.frechet import frechet_distance, moments
from ldm.metrics.inception_score import inception_score
from ldm.metrics.kid import kernel_distance
from ldm.metrics.precision_recall import precision_recall
from ldm.metrics.quality import sample_quality
from ldm.metrics.resize import clean, tensorflow

COUNT = 8  # images of each set
KEYS = {
    "fid": "frechet_inception_distance",
    "kid": "kernel_inception_distance_mean",
    "is": "inception_score_mean",
    "precision": "precision",
    "recall": "recall",
}


def pictures(count: int, size: int, seed: int) -> torch.Tensor:
    """uint8 [count, 3, size, size]: smooth, so that resizing matters little to none of them, and each different."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 5, 5, generator=generator)
    return (nn.functional.interpolate(small, (size, size), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


class Pictures(Dataset):
    """Tensors, not tuples of them, as torch-fidelity wants them."""

    def __init__(self, pixels: torch.Tensor):
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, place: int) -> torch.Tensor:
        return self.pixels[place]


def signed(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float() / 127.5 - 1


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights for Inception."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():  # its constructor insists on loading some
        torch.manual_seed(0)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        patch.setattr(torch, "load", lambda *_, **__: None)
        network = FeatureExtractorInceptionV3("x", ["2048"], "x")
    network.fc.weight.data *= 10  # so that its classes are told apart
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = None
    with torch.no_grad():
        InceptionFeatures(network).network(pictures(4, 64, seed=9))
    torch.save(network.eval().state_dict(), path)
    return path


@pytest.mark.parametrize("fid", [False, pytest.param(True, marks=pytest.mark.slow)])  # roots of 2048 x 2048, twice
def test_metrics_of_the_same_images_are_torch_fidelitys(weights: Path, monkeypatch: pytest.MonkeyPatch, fid: bool):
    if not fid:
        monkeypatch.setattr("ldm.metrics.quality.frechet_distance", lambda *_: 2.0)
    real, fake = pictures(COUNT, 40, seed=1), pictures(COUNT, 40, seed=2)
    fake[: COUNT // 2] = real[: COUNT // 2] // 2 + fake[: COUNT // 2] // 2
    fake[COUNT // 2 :] = torch.randint(0, 256, fake[COUNT // 2 :].shape, generator=torch.Generator().manual_seed(3))
    theirs = calculate_metrics(
        input1=Pictures(fake), input2=Pictures(real), isc=True, fid=fid, kid=True, prc=True, cuda=False,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(weights), kid_subset_size=COUNT,
        kid_subsets=1, isc_splits=1, verbose=False, cache=False, batch_size=COUNT, save_cpu_ram=True,
    )  # fmt: skip
    backbone = inception_features(weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few samples
        ours = sample_quality(backbone(signed(real)), backbone(signed(fake)), backbone, torch.Generator())
    for name, key in list(KEYS.items())[not fid :]:
        assert ours[f"{name}/inception_v3"] == pytest.approx(theirs[key], rel=1e-3), name
    assert 0 < ours["precision/inception_v3"] < 1 and ours["fid/inception_v3"] > 1 and ours["is/inception_v3"] > 1.001


def test_arithmetic_of_many_features_is_torch_fidelitys():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(1500, 24, generator=generator)
    fake = torch.randn(1200, 24, generator=generator) * 0.9 + 0.1
    statistics = [fid_features_to_statistics(features.double()) for features in (fake, real)]
    distance = fid_statistics_to_metric(*statistics, verbose=False)[KEYS["fid"]]
    assert frechet_distance(moments(real), moments(fake)) == pytest.approx(distance, rel=1e-6)
    theirs = prc_features_to_metric(fake, real, prc_neighborhood=3, prc_batch_size=700, save_cpu_ram=True)
    assert precision_recall(real, fake) == pytest.approx((theirs["precision"], theirs["recall"]), rel=1e-3)
    scores = isc_features_to_metric(fake, splits=10, shuffle=False)
    assert inception_score(fake) == pytest.approx(tuple(scores.values()), rel=1e-6)
    whole = kid_features_to_metric(
        fake.double(), real[:1200].double(), kid_subsets=1, kid_subset_size=1200, verbose=False
    )
    found, _ = kernel_distance(real[:1200], fake, generator, num_subsets=1, subset_size=1200)
    assert found == pytest.approx(whole[KEYS["kid"]], rel=1e-3)


@pytest.mark.parametrize("size", [16, 256, 320, 600])
def test_clean_resizing_is_clean_fids(size: int):
    image = torch.randint(0, 256, (size, size, 3), generator=torch.Generator().manual_seed(size), dtype=torch.uint8)
    theirs = torch.from_numpy(build_resizer("clean")(image.numpy()))  # [299, 299, 3]
    ours = clean(signed(image.permute(2, 0, 1)[None]), 299)[0].permute(1, 2, 0)
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 0.02
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()
    assert (tensorflow(signed(image.permute(2, 0, 1)[None]), 299)[0].permute(1, 2, 0) - theirs).abs().max() > 1


@torch.no_grad()
def test_clean_features_are_of_what_clean_fid_gives_the_network(weights: Path):
    pixels = pictures(2, 48, seed=3)
    backbone = inception_features(weights, resize="clean")
    resized = [build_resizer("clean")(image.permute(1, 2, 0).numpy()) for image in pixels]
    x = (torch.stack([torch.from_numpy(image) for image in resized]).permute(0, 3, 1, 2) - 128) / 128
    usual = inception_features(weights)
    network = usual.network
    theirs = nn.Sequential(*[layer for layer in network.children() if layer is not network.fc])(x).flatten(1)
    assert backbone.name == "inception_v3:clean" and backbone.digest == usual.digest
    assert torch.allclose(backbone(signed(pixels)), theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())
    assert not torch.allclose(usual(signed(pixels)), theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())
