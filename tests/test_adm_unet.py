"""ADM's U-Net with cross-attention: the order of its blocks, and what it adds at the start."""

from itertools import chain

import pytest
import torch
from test_unet import shake

from ldm.networks.adm_unet import ADMUNet
from ldm.networks.attention import AttentionBlock, CrossAttentionBlock
from ldm.networks.unet_blocks import ResBlock

TINY = dict(
    in_channels=3, out_channels=3, channels=16, multipliers=[1, 2], num_blocks=1, head_channels=8, norm_groups=8
)
BOTH = [ResBlock, AttentionBlock, CrossAttentionBlock]


def kinds(entry) -> list[type]:
    return [type(layer) for layer in entry]


def test_a_cross_attention_follows_each_self_attention_in_the_base_of_64_px():
    with torch.device("meta"):
        network = ADMUNet(3, 3, 256, [1, 2, 4, 4], 3, [2, 4, 8], tokens_width=1024, vector_width=768)
    down, up = [ResBlock], [ResBlock]  # residual blocks that change the resolution
    levels = [[[ResBlock]] * 3, *[[BOTH] * 3] * 3]
    assert list(map(kinds, network.input_blocks[1:])) == list(chain(*([*level, down] for level in levels)))[:-1]
    assert kinds(network.middle_block) == [*BOTH, ResBlock]
    decoder = [[BOTH, BOTH, BOTH, BOTH + up]] * 3 + [[[ResBlock]] * 4]
    assert list(map(kinds, network.output_blocks)) == list(chain(*decoder))
    attentions = [m for m in network.modules() if isinstance(m, AttentionBlock | CrossAttentionBlock)]
    assert len(attentions) == 2 * (9 + 1 + 12)
    heads = {getattr(m, "attn", m).num_heads * 64 == m.norm.num_channels for m in attentions}
    assert heads == {True}, "64 channels per head"
    assert all(block.scale_shift_norm for block in network.modules() if isinstance(block, ResBlock))


def test_blocks_are_computed_in_that_order():
    network, seen = ADMUNet(**TINY, attention_factors=[2], tokens_width=5), []
    for module in network.modules():
        if isinstance(module, AttentionBlock | CrossAttentionBlock):
            module.register_forward_hook(lambda module, *_: seen.append(type(module)))
    network(torch.randn(1, 3, 8, 8), torch.ones(1), tokens=torch.randn(1, 4, 5))
    assert seen == [AttentionBlock, CrossAttentionBlock] * 4


def test_without_tokens_it_is_adm():
    network = ADMUNet(**TINY, attention_factors=[2])
    assert not any(isinstance(module, CrossAttentionBlock) for module in network.modules())


@pytest.mark.parametrize("updown", [False, True])
def test_it_is_zero_at_the_start_and_every_parameter_is_used(updown):
    network = ADMUNet(**TINY, attention_factors=[1, 2], resblock_updown=updown, tokens_width=5, vector_width=3)
    given = {"tokens": torch.randn(2, 6, 5), "vector": torch.randn(2, 3)}
    x, c_noise = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 2.0])
    assert not network(x, c_noise, **given).any()
    for block in network.modules():
        if isinstance(block, CrossAttentionBlock):
            assert not any(parameter.any() for parameter in block.attn.to_out.parameters())
    out = shake(network)(x, c_noise, **given)
    out.square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    for key, value in given.items():
        assert not torch.allclose(network(x, c_noise, **{**given, key: value + 1}), out)
