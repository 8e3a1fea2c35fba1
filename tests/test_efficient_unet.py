"""Efficient U-Net: where its blocks are, what it adds at the start, its cost in pixels, crops and whole images."""

import pytest
import torch
from test_unet import shake
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ldm.errors import UserError
from ldm.networks.attention import AttentionBlock, CrossAttentionBlock
from ldm.networks.efficient_unet import EfficientUNet
from ldm.networks.unet_blocks import ResBlock

# Tables 3 and 4 of eDiff-I (arXiv 2211.01324).
SR256 = dict(channels=128, multipliers=[1, 2, 4, 8], block_multipliers=[1, 2, 4, 4], self_attention_factors=[8])
SR1024 = dict(channels=128, multipliers=[1, 2, 4, 4], block_multipliers=[1, 2, 4, 4])
TINY = dict(
    in_channels=3, out_channels=3, channels=8, multipliers=[1, 2], block_multipliers=[1, 2], num_blocks=1,
    head_channels=8, norm_groups=4, tokens_width=5, cross_attention_factors=[2],
)  # fmt: skip


def counts(levels: nn.ModuleList, kind: type) -> list[int]:
    """How many blocks of a kind each level has."""
    return [sum(isinstance(module, kind) for module in level) for level in levels]


def inputs(size: int, count: int = 2) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(size)
    x, tokens = (torch.randn(count, *shape, generator=generator) for shape in ((3, size, size), (6, 5)))
    return x, torch.arange(1.0, count + 1), {"tokens": tokens}


@pytest.mark.parametrize(("table", "attends"), [(SR256, True), (SR1024, False)])
def test_blocks_are_few_where_maps_are_large_and_attentions_at_an_eighth_only(table, attends):
    with torch.device("meta"):
        network = EfficientUNet(6, 3, **table, cross_attention_factors=[8], tokens_width=1024, vector_width=768)
    assert counts(network.down_levels, ResBlock) == [2, 4, 8, 8]
    assert counts(network.up_levels, ResBlock) == [8, 8, 4, 2]
    assert counts(network.down_levels, AttentionBlock) == [0, 0, 0, int(attends)]
    assert counts(network.down_levels, CrossAttentionBlock) == [0, 0, 0, 1]
    assert counts(network.up_levels, AttentionBlock) == [int(attends), 0, 0, 0]
    assert sum(isinstance(module, AttentionBlock) for module in network.modules()) == 2 * attends
    assert sum(isinstance(module, CrossAttentionBlock) for module in network.modules()) == 2
    per_level = [sum(p.numel() for p in level.parameters()) for level in network.down_levels]
    assert per_level[0] < 0.02 * per_level[-1], "the weights are where maps are small"


def test_it_is_zero_at_the_start_and_every_parameter_is_used():
    network = EfficientUNet(**TINY, self_attention_factors=[1, 2], vector_width=3, concat_channels=3)
    x, c_noise, given = inputs(8)
    given |= {"vector": torch.randn(2, 3), "concat": torch.randn(2, 3, 8, 8)}
    assert not network(x, c_noise, **given).any()
    last = {ResBlock: "out_layers.3", AttentionBlock: "proj_out", CrossAttentionBlock: "attn.to_out"}
    for block in network.modules():
        if type(block) in last:
            assert not any(p.any() for p in block.get_submodule(last[type(block)]).parameters()), "each adds nothing"
    out = shake(network)(x, c_noise, **given)
    assert out.shape == x.shape
    out.square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    for key, value in given.items():
        assert not torch.allclose(network(x, c_noise, **{**given, key: value + 1}), out)
    with torch.no_grad():
        mask = torch.tensor([[True] * 3 + [False] * 3] * 2)
        masked = network(x, c_noise, **given, tokens_mask=mask)
        changed = {**given, "tokens": given["tokens"] + 5 * ~mask[..., None]}
        assert torch.equal(network(x, c_noise, **changed, tokens_mask=mask), masked)
        alone = network(x[1:], c_noise[1:], **{key: value[1:] for key, value in given.items()})
        assert torch.allclose(network(x, c_noise, **given)[1:], alone, atol=1e-5)


def test_skips_are_scaled():
    """With all residual blocks and the lowest level silent, the last join has 1 / sqrt(2) of what came in."""
    network, seen = EfficientUNet(**TINY), []
    network.up_levels[-1][0].register_forward_hook(lambda module, arguments, out: seen.append(arguments[0]))
    nn.init.zeros_(network.up_levels[0][-1].conv.weight)
    nn.init.zeros_(network.up_levels[0][-1].conv.bias)
    x, c_noise, given = inputs(8)
    network(x, c_noise, **given)
    assert not seen[0][:, :8].any()
    torch.testing.assert_close(seen[0][:, 8:], network.input_conv(x) / 2**0.5)


def flop(network: nn.Module, size: int) -> int:
    x, c_noise, given = inputs(size, count=1)
    counter, by_products = FlopCounterMode(display=False), nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH)
    with torch.no_grad(), counter, by_products:
        network(x, c_noise, **given)
    return counter.get_total_flops()


@pytest.mark.parametrize(("factors", "linear"), [([], True), ([2], False)])
def test_without_self_attention_the_cost_is_linear_in_pixels(factors, linear):
    network = EfficientUNet(**TINY, self_attention_factors=factors).eval()
    small, middle, large = (flop(network, size) for size in (8, 16, 32))  # 1, 4 and 16 times the pixels
    assert (large - middle == 4 * (middle - small)) == linear, "but for what is made once of noise level and tokens"


def test_it_takes_crops_and_whole_images_of_any_size():
    network = EfficientUNet(**TINY).eval()
    x, c_noise, given = inputs(64)
    assert network(x, c_noise, **given).shape == (2, 3, 64, 64)
    assert network(x[:, :, :32, :48], c_noise, **given).shape == (2, 3, 32, 48)
    with pytest.raises(ValueError, match="must be multiples of 2"):
        network(x[:, :, :31], c_noise, **given)


def test_a_number_of_blocks_for_each_level_and_a_level_for_the_tokens():
    with pytest.raises(ValueError, match=r"network\.block_multipliers: has 3 levels, and network\.multipliers has 2"):
        EfficientUNet(**{**TINY, "block_multipliers": [1, 2, 4]})
    with pytest.raises(ValueError, match=r"cross_attention_factors=\[\]: nothing would read the tokens"):
        EfficientUNet(**{**TINY, "cross_attention_factors": []})
    for key in ("self_attention_factors", "cross_attention_factors"):
        for tokens_width in (0, 5):
            with pytest.raises(UserError, match=rf"^network\.{key}=\[2, 8\]: no level .* factor 8; .* \[1, 2\]$"):
                EfficientUNet(**{**TINY, key: [2, 8], "tokens_width": tokens_width})
