"""First stage: regularisers, whitening, the latent's spec and its statistics."""

import json
import math

import pytest
import torch

from ldm.first_stage.first_stage import FirstStage, Identity
from ldm.first_stage.regularizers import KL, VQ
from ldm.first_stage.spec import LatentSpec
from ldm.first_stage.statistics import LatentStatistics
from ldm.networks.autoencoder import Autoencoder
from ldm.networks.fingerprint import fingerprint

SPEC = LatentSpec(4, 2, "grid", False, (0.1, -0.2), (1.5, 0.3), "abc")


def tiny(regularizer):
    torch.manual_seed(0)
    return Autoencoder(
        regularizer.moment_channels,
        regularizer.latent_channels,
        channels=8,
        multipliers=[1, 2],
        num_blocks=1,
        norm_groups=4,
    )


# Regularisers


def test_kl_is_the_divergence_summed_over_a_sample():
    torch.manual_seed(0)
    h = torch.randn(3, 4, 2, 2)
    mean, logvar = h.chunk(2, dim=1)
    posterior = torch.distributions.Normal(mean, (logvar / 2).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3)).mean()
    assert torch.allclose(KL(2)(h, None)[1]["kl"], expected, atol=1e-5)


def test_kl_latent_is_the_mean_plus_scaled_noise():
    regularizer, h, noise = KL(2), torch.randn(3, 4, 2, 2), torch.randn(3, 2, 2, 2)
    mean, logvar = h.chunk(2, dim=1)
    assert torch.equal(regularizer.sample(h, None), mean)
    z, _ = regularizer(h, noise)
    assert torch.allclose(z, mean + (logvar / 2).exp() * noise)
    assert torch.equal(z, regularizer.sample(h, noise))
    assert torch.equal(regularizer.quantise(z), z)


def test_kl_stays_finite_for_extreme_log_variances():
    h = torch.cat([torch.zeros(1, 1, 1, 2), torch.tensor([[[[-1e9, 1e9]]]])], dim=1)
    z, losses = KL(1)(h, torch.ones(1, 1, 1, 2))
    assert z.isfinite().all() and losses["kl"].isfinite()
    assert torch.allclose(z.log(), torch.tensor([-15.0, 10.0]))  # log-variances at -30 and 20


def test_vq_takes_the_nearest_code():
    torch.manual_seed(0)
    regularizer = VQ(3, num_codes=17)
    torch.nn.init.normal_(regularizer.embedding.weight)
    z = torch.randn(2, 3, 4, 5)
    distances = torch.cdist(z.movedim(1, -1).reshape(-1, 3), regularizer.embedding.weight)
    assert torch.equal(regularizer.indices(z).flatten(), distances.argmin(1))
    codes = regularizer.quantise(z)
    assert torch.equal(regularizer.quantise(codes), codes)
    assert torch.allclose(regularizer(z, None)[0], codes, atol=1e-6)
    assert torch.equal(regularizer.sample(z, None), z)  # stage two sees the features before quantisation


def test_vq_takes_the_nearest_code_under_autocast_too():
    torch.manual_seed(0)
    regularizer, z = VQ(3, num_codes=8192), torch.randn(2, 3, 16, 16)
    torch.nn.init.normal_(regularizer.embedding.weight)
    nearest, (codes, terms) = regularizer.indices(z), regularizer(z, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(regularizer.indices(z), nearest)  # in bf16 a third would be others
        assert torch.equal(regularizer(z, None)[0], codes)
        assert torch.equal(regularizer(z, None)[1]["codebook"], terms["codebook"])


def test_vq_passes_gradients_straight_through():
    regularizer, h = VQ(3, num_codes=8), torch.randn(2, 3, 4, 4, requires_grad=True)
    weights = torch.randn(2, 3, 4, 4)
    z, _ = regularizer(h, None)
    (z * weights).sum().backward()
    assert torch.equal(h.grad, weights)
    assert regularizer.embedding.weight.grad is None


@pytest.mark.parametrize("legacy", [False, True])
def test_vq_commitment_is_on_the_encoder_unless_legacy(legacy):
    regularizer = VQ(3, num_codes=8, beta=0.25, legacy=legacy)
    h = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = regularizer(h, None)[1]["codebook"]
    loss.backward()
    difference = h - regularizer.quantise(h)
    assert torch.allclose(loss, 1.25 * difference.square().mean())
    assert torch.allclose(h.grad, (1.0 if legacy else 0.25) * 2 * difference / h.numel(), atol=1e-7)
    to_codes = regularizer.embedding.weight.grad.sum(0)
    assert torch.allclose(to_codes, (-0.25 if legacy else -1.0) * 2 * difference.sum((0, 2, 3)) / h.numel(), atol=1e-6)


def test_vq_stats_count_the_codes_in_use():
    regularizer = VQ(1, num_codes=4)
    with torch.no_grad():
        regularizer.embedding.weight.copy_(torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
    h = torch.tensor([0.0, 1.0, 0.1, 1.1]).view(1, 1, 2, 2)
    regularizer(h, None)
    regularizer.eval()(h + 2, None)  # not counted
    stats = regularizer.stats(h)
    assert regularizer.counts.tolist() == [2, 2, 0, 0] and regularizer.state_dict().keys() == {"embedding.weight"}
    assert stats["usage"] == 0.5
    assert torch.allclose(stats["perplexity"], torch.tensor(2.0))


# The stage


@pytest.mark.parametrize("regularizer", [KL(3), VQ(3, num_codes=32)], ids=["kl", "vq"])
def test_latents_are_whitened_by_the_stored_statistics(regularizer):
    autoencoder = tiny(regularizer)
    image = torch.rand(4, 3, 16, 16) * 2 - 1
    plain = FirstStage(autoencoder, regularizer, [0.0] * 3, [1.0] * 3, "x")
    statistics = LatentStatistics(3)
    statistics.update(plain.encode(image))
    stage = FirstStage(autoencoder, regularizer, statistics.mean, statistics.std, "x")
    z = stage.encode(image)
    assert z.shape == (4, 3, 8, 8)
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(z.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4)
    assert torch.allclose(stage.decode(z), plain.decode(plain.encode(image)), atol=1e-5)


class Louder(torch.nn.Module):
    """A first stage whose posterior is `loudness` times that of another, and whose images are the same."""

    def __init__(self, autoencoder, loudness: float):
        super().__init__()
        self.autoencoder = autoencoder
        self.loudness = loudness
        self.f = autoencoder.f

    def encode(self, image):
        mean, log_variance = self.autoencoder.encode(image).chunk(2, dim=1)
        return torch.cat([mean * self.loudness, log_variance + 2 * math.log(self.loudness)], dim=1)

    def decode(self, z):
        return self.autoencoder.decode(z / self.loudness)


@pytest.mark.parametrize("single_factor", [False, True])
@pytest.mark.parametrize("loudness", [0.1, 5.0])
def test_the_signal_to_noise_ratio_does_not_depend_on_the_scale_of_a_kl_stage(loudness, single_factor):
    """arXiv:2112.10752, D.1: unscaled latents have the SNR Var(z) / sigma^2, too much of it where they are loud."""
    autoencoder, regularizer, image = tiny(KL(3)), KL(3), torch.rand(4, 3, 16, 16) * 2 - 1
    noise, sigma = torch.randn(4, 3, 8, 8), 2.0

    def whitened(network):
        plain = FirstStage(network, regularizer, [0.0] * 3, [1.0] * 3, "x")
        statistics = LatentStatistics(3)
        statistics.update(plain.encode(image, noise))
        summary = statistics.summary(single_factor)
        left = statistics.summary(whiten=False)
        assert (left["mean"], left["std"]) == ([0.0] * 3, [1.0] * 3)
        return plain, FirstStage(network, regularizer, summary["mean"], summary["std"], "x")

    plain, stage = whitened(Louder(autoencoder, loudness))
    as_it_is, quiet = whitened(autoencoder)
    z = stage.encode(image, noise)
    assert (z.var(correction=0) / sigma**2).item() == pytest.approx(1 / sigma**2, rel=1e-4)
    too_much = plain.encode(image, noise).var(correction=0) / as_it_is.encode(image, noise).var(correction=0)
    assert too_much.item() == pytest.approx(loudness**2, rel=1e-3)
    torch.testing.assert_close(z, quiet.encode(image, noise), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(stage.decode(z), quiet.decode(z), rtol=1e-4, atol=1e-4)


def test_encoding_is_a_sample_of_the_moments():
    stage = FirstStage(tiny(KL(3)), KL(3), [0.5] * 3, [2.0] * 3, "x")
    image, noise = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4)
    assert torch.equal(stage.encode(image, noise), stage.sample(stage.moments(image), noise))
    assert torch.equal(stage.encode(image), stage.sample(stage.moments(image)))
    assert not torch.equal(stage.encode(image), stage.encode(image, noise))


def test_the_stage_is_frozen_but_its_decoder_passes_gradients():
    stage = FirstStage(tiny(KL(3)), KL(3), [0.0] * 3, [1.0] * 3, "x")
    assert not any(p.requires_grad for p in stage.parameters())
    z = torch.randn(1, 3, 4, 4, requires_grad=True)
    stage.decode(z).sum().backward()
    assert z.grad.any()


def test_the_spec_says_what_the_stage_is():
    spec = FirstStage(tiny(VQ(3, 8)), VQ(3, 8), [0.0, 1.0, 2.0], [1.0, 2.0, 3.0], "x").spec
    assert spec == LatentSpec(2, 3, "grid", False, (0.0, 1.0, 2.0), (1.0, 2.0, 3.0), "x")


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [([0.0] * 2, [1.0] * 3, "2 and 3 values"), ([0.0] * 3, [1.0, 0.0, 1.0], "constant channel")],
)
def test_statistics_that_cannot_whiten_are_refused(mean, std, message):
    with pytest.raises(ValueError, match=message):
        FirstStage(tiny(KL(3)), KL(3), mean, std, "x")


def test_identity_has_the_same_interface_and_nothing_to_train():
    image = torch.rand(2, 3, 5, 7) * 2 - 1
    assert torch.equal(Identity().encode(image), image)
    stage = Identity(mean=[0.1, 0.2, 0.3], std=[0.5])
    assert torch.allclose(stage.decode(stage.encode(image)), image)
    assert stage.spec.f == 1 and stage.spec.std == (0.5, 0.5, 0.5)
    assert not list(stage.parameters()) and not stage.state_dict()
    with pytest.raises(ValueError, match="1 channels"):
        stage.encode(image[:, :1])
    for other in (torch.zeros(2, 3), torch.zeros(2, 3, 7), torch.zeros(2, 3, 4, 5, 7)):  # whatever would broadcast
        for change in (stage.encode, stage.sample, stage.decode):
            with pytest.raises(ValueError, match=r"first_stage=null models images \[B, C, H, W\]"):
                change(other)


def test_fingerprint_depends_on_every_weight():
    stage = tiny(KL(3))
    before = fingerprint(stage)
    assert before == fingerprint(tiny(KL(3))) and len(before) == 16
    with torch.no_grad():
        stage.decoder.conv_out.bias[0] += 1e-3
    assert fingerprint(stage) != before
    assert fingerprint(stage, VQ(3, 8)) != fingerprint(stage)


# Spec and statistics


def test_spec_survives_json():
    assert LatentSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC
    with pytest.raises(ValueError, match="expected the keys"):
        LatentSpec.from_dict({"f": 4})


def test_a_spec_of_any_kind_survives_json_and_says_its_shape():
    for kind, more, shape in [
        ("vector", {}, (2,)),
        ("sequence", {"length": 5}, (2, 5)),
        ("sequence", {"length": 5, "groups": ((1, 1), (2, 2))}, (2, 5)),
        ("grid", {}, (2, 6, 3)),
    ]:
        spec = LatentSpec(4, 2, kind, False, (0.1, -0.2), (1.5, 0.3), "abc", **more)
        assert LatentSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
        assert spec.shape((6, 3)) == shape
        z, mean = torch.zeros(7, *shape), spec.per_channel(torch.tensor(spec.mean))
        assert (z + mean).shape == z.shape and torch.equal((z + mean)[3, 1].unique(), mean.flatten()[1:])


def test_a_spec_written_before_there_were_sequences_is_read():
    old = {"f": 4, "channels": 2, "kind": "grid", "discrete": False, "mean": [0.1, -0.2], "std": [1.5, 0.3],
           "fingerprint": "abc"}  # fmt: skip
    assert LatentSpec.from_dict(old) == SPEC


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"kind": "tree"}, "kind 'tree', must be one of vector, sequence, grid"),
        ({"kind": "sequence"}, "a sequence of length 0"),
        ({"length": 4}, "a grid of length 4"),
        ({"kind": "sequence", "length": 4, "groups": [[1, 1], [1, 2]]}, "do not add up to length 4"),
        ({"kind": "sequence", "length": 4, "groups": [2, 2]}, r"groups .* are not all \[h, w\]"),
        ({"kind": "sequence", "length": "4"}, "length is '4', expected int"),
    ],
)
def test_a_spec_that_says_nonsense_is_refused(change, problem):
    with pytest.raises(ValueError, match=problem):
        LatentSpec.from_dict(SPEC.to_dict() | change)


@pytest.mark.parametrize(("key", "value"), [("f", 8), ("channels", 3), ("std", [1.5, 0.4]), ("fingerprint", "abd")])
def test_another_latent_space_is_refused_by_name(key, value):
    SPEC.check(SPEC)
    with pytest.raises(ValueError, match=key):
        SPEC.check(LatentSpec.from_dict(SPEC.to_dict() | {key: value}))


def test_statistics_do_not_depend_on_batches_or_processes():
    torch.manual_seed(0)
    z = torch.randn(10, 3, 4, 4) * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1) + 1000
    parts = []
    for batches in (z[:3].split(1), z[3:].split(4)):
        statistics = LatentStatistics(3)
        for batch in batches:
            statistics.update(batch)
        parts.append(LatentStatistics.from_tensor(statistics.to_tensor()))
    parts[0].merge(parts[1])
    parts[0].merge(LatentStatistics(3))
    assert parts[0].count == 160
    exact = z.double()
    assert torch.allclose(parts[0].mean, exact.mean((0, 2, 3)), rtol=1e-14)
    assert torch.allclose(parts[0].std, exact.std((0, 2, 3), correction=0), rtol=1e-11)


def test_statistics_refuse_what_has_none():
    statistics = LatentStatistics(2)
    with pytest.raises(ValueError, match="nothing was seen"):
        _ = statistics.std
    with pytest.raises(ValueError, match="3 channels"):
        statistics.update(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match="finite"):
        statistics.update(torch.full((1, 2, 2, 2), float("nan")))
