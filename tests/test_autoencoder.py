"""Autoencoder and discriminator: the published architectures to the last key, sizes, and what is refused."""

import pytest
import torch

from ldm.build import load_first_stage
from ldm.networks.autoencoder import Autoencoder
from ldm.networks.discriminator import PatchDiscriminator

# name: (moment, latent channels, multipliers, attention factors, middle attention, M parameters, keys): table 8.
PUBLISHED = {
    "kl-f4": (6, 3, [1, 2, 4], [], True, 55.31, 204),
    "kl-f8": (8, 4, [1, 2, 4, 4], [], True, 83.65, 248),
    "kl-f16": (32, 16, [1, 1, 2, 2, 4], [16], True, 69.61, 342),
    "kl-f32": (128, 64, [1, 1, 2, 2, 4, 4], [16, 32], True, 103.86, 436),
    "vq-f4": (3, 3, [1, 2, 4], [], True, 55.30, 204),
    "vq-f4-noattn": (3, 3, [1, 2, 4], [], False, 53.19, 184),
    "vq-f8": (4, 4, [1, 2, 2, 4], [8], True, 67.65, 298),
    "vq-f16": (8, 8, [1, 1, 2, 2, 4], [16], True, 69.46, 342),
}
TINY = dict(moment_channels=6, latent_channels=3, channels=8, num_blocks=1, norm_groups=4)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_architecture(name):
    moments, latent, multipliers, factors, mid_attention, millions, num_keys = PUBLISHED[name]
    with torch.device("meta"):
        network = Autoencoder(moments, latent, 128, multipliers, 2, factors, mid_attention)
    counted = [*network.encoder.parameters(), *network.decoder.parameters()]
    assert round(sum(p.numel() for p in counted) / 1e6, 2) == millions
    assert len(network.state_dict()) == num_keys
    assert network.f == 2 ** (len(multipliers) - 1)


def test_published_names():
    with torch.device("meta"):
        shapes = {
            key: list(v.shape) for key, v in Autoencoder(32, 16, 128, [1, 1, 2, 2, 4], 2, [16]).state_dict().items()
        }
    some = {
        "encoder.conv_in.weight": [128, 3, 3, 3],
        "encoder.down.2.block.0.nin_shortcut.weight": [256, 128, 1, 1],
        "encoder.down.3.downsample.conv.weight": [256, 256, 3, 3],
        "encoder.down.4.attn.1.proj_out.weight": [512, 512, 1, 1],
        "encoder.mid.attn_1.q.weight": [512, 512, 1, 1],
        "decoder.up.1.block.0.conv1.weight": [128, 256, 3, 3],
        "decoder.up.4.upsample.conv.weight": [512, 512, 3, 3],
        "decoder.up.4.attn.2.norm.weight": [512],
        "decoder.conv_out.weight": [3, 128, 3, 3],
        "quant_conv.weight": [32, 32, 1, 1],
        "post_quant_conv.weight": [16, 16, 1, 1],
    }
    assert some.items() <= shapes.items()


@pytest.mark.parametrize("multipliers", [[1, 2], [1, 2, 2], [1, 1, 1, 1, 1, 1]])
def test_sizes(multipliers):
    network = Autoencoder(**TINY, multipliers=multipliers, attention_factors=[2])
    f = network.f
    h = network.encode(torch.randn(2, 3, 2 * f, 3 * f))
    assert h.shape == (2, 6, 2, 3)
    assert network.decode(h[:, :3]).shape == (2, 3, 2 * f, 3 * f)


def test_every_parameter_is_used():
    network = Autoencoder(**TINY, multipliers=[1, 2], attention_factors=[1, 2])
    network.decode(network.encode(torch.randn(2, 3, 8, 8))[:, :3]).square().sum().backward()
    # Only the means went to the decoder: the log-variances' rows have no gradient, all else has.
    assert not [name for name, p in network.named_parameters() if not p.grad.any()]


def test_downsampling_pads_at_the_right_and_the_bottom():
    network = Autoencoder(**TINY, multipliers=[1, 2])
    downsample = network.encoder.down[0].downsample
    x = torch.randn(1, 8, 6, 6)
    inside = torch.nn.functional.conv2d(x, downsample.conv.weight, downsample.conv.bias, stride=2)
    assert torch.allclose(downsample(x)[:, :, :2, :2], inside, atol=1e-6)
    assert downsample(x).shape[2:] == (3, 3)


def test_last_layer_gives_the_image():
    network = Autoencoder(**TINY, multipliers=[1, 2])
    with torch.no_grad():
        network.last_layer.zero_()
        network.decoder.conv_out.bias.fill_(0.25)
        assert torch.equal(network.decode(torch.randn(1, 3, 4, 4)), torch.full((1, 3, 8, 8), 0.25))


@pytest.mark.parametrize(("shape", "message"), [((1, 1, 8, 8), "channels"), ((1, 3, 10, 8), "multiples of f = 4")])
def test_images_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        Autoencoder(**TINY, multipliers=[1, 2, 2]).encode(torch.zeros(shape))


def test_latents_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="latent has 6 channels"):
        Autoencoder(**TINY, multipliers=[1, 2]).decode(torch.zeros(1, 6, 2, 2))
    with pytest.raises(ValueError, match="norm_groups"):
        Autoencoder(**TINY | {"norm_groups": 32}, multipliers=[1, 2])


def test_discriminator_is_the_published_one():
    with torch.device("meta"):
        large, small = PatchDiscriminator(num_layers=3), PatchDiscriminator(num_layers=2)
    assert round(sum(p.numel() for p in large.parameters()) / 1e6, 2) == 2.77
    assert round(sum(p.numel() for p in small.parameters()) / 1e6, 2) == 0.66
    assert {key.split(".")[1] for key in large.state_dict()} == {"0", "2", "3", "5", "6", "8", "9", "11"}


def test_discriminator_starts_from_its_distribution_and_gives_a_logit_for_each_patch():
    torch.manual_seed(0)
    network = PatchDiscriminator()
    assert abs(network.main[5].weight.std() - 0.02) < 0.001
    assert abs(network.main[6].weight.mean() - 1) < 0.01
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 1, 6, 6)


def test_latents_are_left_as_they_come_where_that_is_asked_for(train_autoencoder):
    run = train_autoencoder("task.whiten=false")
    spec = load_first_stage(run.folder).spec
    assert not any(spec.mean) and set(spec.std) == {1.0}
    with pytest.raises(ValueError, match=r"task\.whiten=false: leaves no factor"):
        train_autoencoder("task.whiten=false", "task.single_factor=true", run="both")
