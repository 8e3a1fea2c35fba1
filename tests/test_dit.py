"""DiT: the sizes of the paper, its initialisation, and the properties of the network contract."""

import pytest
import torch

from ldm.networks.attention import SelfAttention
from ldm.networks.context import Context
from ldm.networks.dit import DiT, positions

# Table 1 of arXiv 2212.09748, and the millions of parameters it gives for patches of 2 on latents of 4 channels with
# 1,000 classes. The published networks predict a variance beside the noise: twice the output channels.
PUBLISHED = {
    "S": (dict(width=384, depth=12, num_heads=6), 33),
    "B": (dict(width=768, depth=12, num_heads=12), 130),
    "L": (dict(width=1024, depth=24, num_heads=16), 458),
    "XL": (dict(width=1152, depth=28, num_heads=16), 675),
}
NUM_CLASSES = 1000

TINY = dict(in_channels=4, out_channels=4, patch_size=2, width=16, depth=2, num_heads=2)
ALL = dict(tokens_width=5, vector_width=3, concat_channels=2)


def shake(network):
    """Give the zero-initialised layers values, so that something comes out."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    return network.eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    arguments, millions = PUBLISHED[name]
    with torch.device("meta"):
        network = DiT(in_channels=4, out_channels=8, patch_size=2, **arguments)
    table = (NUM_CLASSES + 1) * arguments["width"]  # of classes, and one for none
    assert round((sum(p.numel() for p in network.parameters()) + table) / 1e6) == millions


def test_output_is_zero_at_the_start_and_every_block_is_the_identity():
    network = DiT(**TINY, tokens_width=5)
    assert not network(torch.randn(2, 4, 8, 8), torch.tensor([1.0, 900.0]), tokens=torch.randn(2, 3, 5)).any()
    x, cond, tokens = torch.randn(2, 7, 16), torch.randn(2, 16), torch.randn(2, 3, 5)
    for block in network.blocks:
        assert torch.equal(block(x, cond, Context(tokens)), x)


@pytest.mark.parametrize("size", [(8, 8), (4, 12)])
def test_shapes_and_every_parameter_is_used(size):
    network = shake(DiT(**TINY, **ALL))
    out = network(
        torch.randn(2, 4, *size),
        torch.tensor([1.0, 2.0]),
        vector=torch.randn(2, 3),
        tokens=torch.randn(2, 6, 5),
        concat=torch.randn(2, 2, *size),
    )
    assert out.shape == (2, 4, *size)
    out.square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]


def test_only_every_so_manieth_block_attends_to_tokens():
    network = DiT(**TINY | dict(depth=5), tokens_width=5, cross_attention_every=2)
    assert [block.cross is not None for block in network.blocks] == [True, False, True, False, True]
    assert all(block.cross is None for block in DiT(**TINY).blocks)


def test_each_condition_and_the_noise_level_matter():
    network = shake(DiT(**TINY, **ALL))
    given = dict(vector=torch.randn(1, 3), tokens=torch.randn(1, 6, 5), concat=torch.randn(1, 2, 8, 8))
    x, c_noise = torch.randn(1, 4, 8, 8), torch.tensor([3.0])
    base = network(x, c_noise, **given)
    assert not torch.allclose(network(x, c_noise + 1, **given), base)
    for key, value in given.items():
        assert not torch.allclose(network(x, c_noise, **{**given, key: value + 1}), base)


def test_masked_tokens_do_not_matter():
    network = shake(DiT(**TINY, tokens_width=5))
    x, c_noise, tokens = torch.randn(2, 4, 8, 8), torch.ones(2), torch.randn(2, 6, 5)
    mask = torch.tensor([[True] * 3 + [False] * 3] * 2)
    with torch.no_grad():
        base = network(x, c_noise, tokens=tokens, tokens_mask=mask)
        tokens[:, 3:] += 5
        assert torch.equal(network(x, c_noise, tokens=tokens, tokens_mask=mask), base)
        assert torch.allclose(network(x, c_noise, tokens=tokens[:, :3]), base, atol=1e-5)


def test_samples_do_not_mix():
    network = shake(DiT(**TINY, vector_width=3))
    x, c_noise, vector = torch.randn(3, 4, 8, 8), torch.tensor([1.0, 2.0, 3.0]), torch.randn(3, 3)
    with torch.no_grad():
        alone = network(x[1:2], c_noise[1:2], vector=vector[1:2])
        assert torch.allclose(network(x, c_noise, vector=vector)[1:2], alone, atol=1e-5)


def test_without_positions_patches_would_be_a_set(monkeypatch):
    network = shake(DiT(**TINY))
    x, c_noise = torch.randn(1, 4, 8, 8), torch.ones(1)
    with torch.no_grad():
        assert not torch.allclose(network(x.roll(2, dims=3), c_noise), network(x, c_noise).roll(2, dims=3), atol=1e-3)
        monkeypatch.setattr(
            "ldm.networks.dit.positions", lambda height, width, channels, like: like.new_zeros(channels)
        )
        assert torch.allclose(network(x.roll(2, dims=3), c_noise), network(x, c_noise).roll(2, dims=3), atol=1e-5)


def test_positions_tell_rows_and_columns_apart():
    found = positions(3, 5, 16, like=torch.zeros(1)).unflatten(0, (3, 5))
    assert found.flatten(0, 1).unique(dim=0).shape == (15, 16)
    assert torch.equal(found[0, :, :8], found[2, :, :8])  # the first half is the column's
    assert torch.equal(found[:, 0, 8:], found[:, 4, 8:])
    assert torch.allclose(found.square().sum(-1), torch.full((3, 5), 8.0))  # a sine and a cosine of each angle
    assert torch.equal(found, positions(4, 6, 16, like=torch.zeros(1)).unflatten(0, (4, 6))[:3, :5])


def test_bf16_training_follows_fp32():
    network = shake(DiT(**TINY, tokens_width=5)).train()
    x, c_noise, tokens = torch.randn(4, 4, 8, 8), torch.rand(4) * 999, torch.randn(4, 6, 5)
    gradients = []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = network(x, c_noise, tokens=tokens)
        out.float().square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.99
    assert (gradients[0] - gradients[1]).norm() < 0.1 * gradients[0].norm()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(dict(width=18, num_heads=1), "width"), (dict(num_heads=3), "num_heads"), (dict(patch_size=0), "patch_size"),
     (dict(cross_attention_every=0), "cross_attention_every")],
)  # fmt: skip
def test_impossible_architectures_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DiT(**TINY | arguments)


@pytest.mark.parametrize(
    ("shape", "given", "message"),
    [
        ((1, 3, 8, 8), {}, "x"),
        ((1, 4, 7, 8), {}, "multiples of 2"),
        ((1, 4, 8, 8), {"tokens": torch.zeros(1, 2, 5)}, "tokens"),
        ((1, 4, 8, 8), {"vector": torch.zeros(1, 5)}, "vector"),
        ((1, 4, 8, 8), {"concat": torch.zeros(1, 1, 8, 8)}, "concat"),
    ],
)
def test_what_the_network_was_not_built_for_is_refused(shape, given, message):
    with pytest.raises(ValueError, match=message):
        DiT(**TINY)(torch.zeros(shape), torch.ones(1), **given)


def test_masked_positions_of_self_attention_do_not_matter():
    attention = SelfAttention(8, 2)
    x, mask = torch.randn(2, 6, 8), torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    with torch.no_grad():
        out = attention(x, mask)
        assert torch.allclose(out[0, :4], attention(x[:1, :4])[0], atol=1e-6)
        assert torch.allclose(out[1], attention(x[1:])[0], atol=1e-6)
