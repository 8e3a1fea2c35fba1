"""The U-Net's encoder as a classifier: same blocks as the U-Net, an attention pool, and what it refuses."""

import math

import pytest
import torch
from torch import nn

from ldm.networks.encoder_unet import AttentionPool, EncoderUNet
from ldm.networks.unet import UNet

TABLE = dict(channels=8, multipliers=[1, 2], num_blocks=1, attention_factors=[2], head_channels=4, norm_groups=4)


def encoder(**more) -> EncoderUNet:
    torch.manual_seed(0)
    return EncoderUNet(**{"in_channels": 3, "latent_size": 8, "num_classes": 5, **TABLE, **more})


def test_its_blocks_are_the_unets_by_name_and_shape():
    unet = {name: p.shape for name, p in UNet(3, 3, **TABLE).named_parameters()}
    own = {name: p.shape for name, p in encoder().named_parameters()}
    shared = {name for name in unet if name.split(".")[0] in ("time_embed", "input_blocks", "middle_block")}
    assert {name for name in own if not name.startswith("out.")} == shared
    assert all(own[name] == unet[name] for name in shared)


def test_every_class_is_equally_likely_at_first_and_every_parameter_learns():
    network = encoder()
    x, c_noise = torch.randn(4, 3, 8, 8), torch.rand(4)
    assert torch.equal(network(x, c_noise), torch.zeros(4, 5))
    for parameter in network.parameters():  # zero-initialised layers would hide those before them
        nn.init.normal_(parameter, std=0.3)
    nn.functional.cross_entropy(network(x, c_noise), torch.tensor([0, 1, 2, 3])).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_the_pool_is_attention_of_the_mean_to_all_positions_and_itself():
    torch.manual_seed(0)
    pool = AttentionPool(8, 3, num_heads=2, out_width=5)
    nn.init.normal_(pool.c_proj.weight)
    x = torch.randn(2, 8, 3, 3)
    tokens = x.flatten(2)
    tokens = (torch.cat([tokens.mean(-1, keepdim=True), tokens], -1) + pool.positional_embedding).transpose(1, 2)
    q, k, v = (tokens @ pool.qkv_proj.weight[:, :, 0].T + pool.qkv_proj.bias).chunk(3, -1)
    heads = []
    for half in (slice(0, 4), slice(4, 8)):
        weights = (q[:, :1, half] @ k[..., half].transpose(1, 2) / math.sqrt(4)).softmax(-1)
        heads.append(weights @ v[..., half])
    expected = torch.cat(heads, -1)[:, 0] @ pool.c_proj.weight[:, :, 0].T
    torch.testing.assert_close(pool(x), expected)


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"num_classes": 1}, r"network\.num_classes=1"),
        ({"latent_size": 9}, r"network\.multipliers: 2 levels"),
        ({"num_heads": 2}, r"network\.num_heads or network\.head_channels"),
        ({"head_channels": 3}, r"network\.head_channels=3: does not divide 16 channels"),
        ({"head_channels": 64}, r"network\.head_channels=64: does not divide 16 channels"),
        ({"head_channels": 0}, r"network\.head_channels=0: does not divide 16 channels"),
    ],
)
def test_bad_tables_are_refused(more, problem):
    with pytest.raises(ValueError, match=problem):
        encoder(**more)


def test_latents_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"built for latents \(3, 8, 8\) and got \(3, 16, 16\)"):
        encoder()(torch.zeros(1, 3, 16, 16), torch.zeros(1))
