"""U-Net: the published architectures to the last key, and the properties of the network contract."""

import pytest
import torch

from ldm.networks.attention import AttentionBlock, Cond, SpatialTransformer
from ldm.networks.context import Context
from ldm.networks.unet import UNet
from ldm.networks.unet_blocks import Blocks, apply

# Constructor arguments of published models, and their millions of parameters (arXiv 2112.10752 and its repository).
PUBLISHED = {
    "celebahq": (
        dict(channels=224, multipliers=[1, 2, 3, 4], attention_factors=[2, 4, 8], head_channels=32),
        3,
        274.06,
    ),
    "churches": (
        dict(
            channels=192,
            multipliers=[1, 2, 2, 4, 4],
            attention_factors=[1, 2, 4, 8],
            num_heads=8,
            scale_shift_norm=True,
            resblock_updown=True,
        ),
        4,
        294.97,
    ),
    "cin256": (
        dict(channels=256, multipliers=[1, 2, 4], attention_factors=[1, 2, 4], head_channels=32, tokens_width=512),
        4,
        394.98,
    ),
    "cin256_v2": (
        dict(channels=192, multipliers=[1, 2, 3, 5], attention_factors=[2, 4, 8], num_heads=1, tokens_width=512),
        3,
        400.92,
    ),
    "text2img": (
        dict(channels=320, multipliers=[1, 2, 4, 4], attention_factors=[1, 2, 4], num_heads=8, tokens_width=1280),
        4,
        872.30,
    ),
    "layout_openimages": (
        dict(
            channels=128,
            multipliers=[1, 2, 3, 4],
            attention_factors=[2, 4, 8],
            head_channels=32,
            tokens_width=512,
            transformer_depth=3,
        ),
        3,
        246.28,
    ),
    "layout_coco": (
        dict(
            channels=192,
            multipliers=[1, 2, 4],
            attention_factors=[1, 2, 4],
            num_heads=1,
            tokens_width=512,
            transformer_depth=2,
        ),
        4,
        312.24,
    ),
    "semantic": (
        dict(channels=128, multipliers=[1, 4, 8], attention_factors=[8, 16, 32], num_heads=8, concat_channels=3),
        3,
        215.23,
    ),
    "superres_bsr": (
        dict(channels=160, multipliers=[1, 2, 2, 4], attention_factors=[8, 16], head_channels=32, concat_channels=3),
        3,
        113.62,
    ),
    "inpainting_big": (
        dict(
            channels=256,
            multipliers=[1, 2, 3, 4],
            attention_factors=[2, 4, 8],
            num_heads=8,
            resblock_updown=True,
            concat_channels=4,
        ),
        3,
        387.25,
    ),
    "rdm_768": (
        dict(channels=448, multipliers=[1, 2, 3, 4], attention_factors=[1, 2, 4], head_channels=32, tokens_width=768),
        16,
        1335.48,
    ),
}

# A few keys of published checkpoints (without "model.diffusion_model."), one of each kind, with their shapes.
KEYS = {
    "celebahq": {
        "time_embed.2.weight": [896, 896],
        "input_blocks.3.0.op.weight": [224, 224, 3, 3],
        "input_blocks.7.1.qkv.weight": [2016, 672, 1],
        "middle_block.1.proj_out.weight": [896, 896, 1],
        "output_blocks.2.2.conv.weight": [896, 896, 3, 3],
        "out.2.weight": [3, 224, 3, 3],
    },
    "churches": {
        "input_blocks.3.0.in_layers.2.weight": [192, 192, 3, 3],
        "input_blocks.1.0.emb_layers.1.weight": [384, 768],
        "output_blocks.2.1.out_layers.3.weight": [768, 768, 3, 3],
        "output_blocks.3.0.skip_connection.weight": [768, 1536, 1, 1],
    },
    "text2img": {
        "input_blocks.4.1.transformer_blocks.0.attn1.to_out.0.weight": [640, 640],
        "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": [640, 1280],
        "input_blocks.4.1.transformer_blocks.0.ff.net.0.proj.weight": [5120, 640],
        "input_blocks.4.1.transformer_blocks.0.ff.net.2.weight": [640, 2560],
        "middle_block.1.proj_in.weight": [1280, 1280, 1, 1],
        "output_blocks.2.1.conv.weight": [1280, 1280, 3, 3],
    },
}
NUM_KEYS = {"celebahq": 368, "churches": 520, "text2img": 686, "inpainting_big": 416, "rdm_768": 688}

TINY = dict(in_channels=4, out_channels=4, channels=16, multipliers=[1, 2], num_blocks=1, num_heads=2, norm_groups=8)


def shake(network):
    """Give the zero-initialised layers values, so that something comes out."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, 0.0, 0.1)
    return network.eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_architecture(name):
    arguments, channels, millions = PUBLISHED[name]
    with torch.device("meta"):
        network = UNet(in_channels=channels, out_channels=channels, **arguments)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert KEYS.get(name, {}).items() <= shapes.items()
    assert len(shapes) == NUM_KEYS.get(name, len(shapes))


def test_output_is_zero_at_the_start():
    network = UNet(**TINY, attention_factors=[1, 2])
    assert not network(torch.randn(2, 4, 8, 8), torch.tensor([1.0, 900.0])).any()


@pytest.mark.parametrize("size", [(8, 8), (4, 12)])
def test_shapes_and_every_parameter_is_used(size):
    network = shake(UNet(**TINY, attention_factors=[1, 2], tokens_width=5, vector_width=3, concat_channels=2))
    out = network(
        torch.randn(2, 4, *size),
        torch.tensor([1.0, 2.0]),
        vector=torch.randn(2, 3),
        tokens=torch.randn(2, 6, 5),
        concat=torch.randn(2, 2, *size),
    )
    assert out.shape == (2, 4, *size)
    out.square().sum().backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unused


def test_each_condition_and_the_noise_level_matter():
    network = shake(UNet(**TINY, attention_factors=[1, 2], tokens_width=5, vector_width=3, concat_channels=2))
    given = dict(vector=torch.randn(1, 3), tokens=torch.randn(1, 6, 5), concat=torch.randn(1, 2, 8, 8))
    x, c_noise = torch.randn(1, 4, 8, 8), torch.tensor([3.0])
    base = network(x, c_noise, **given)
    assert not torch.allclose(network(x, c_noise + 1, **given), base)
    for key, value in given.items():
        assert not torch.allclose(network(x, c_noise, **{**given, key: value + 1}), base)


def test_masked_tokens_do_not_matter():
    network = shake(UNet(**TINY, attention_factors=[1], tokens_width=5))
    x, c_noise, tokens = torch.randn(2, 4, 8, 8), torch.ones(2), torch.randn(2, 6, 5)
    mask = torch.tensor([[True] * 3 + [False] * 3] * 2)
    with torch.no_grad():
        base = network(x, c_noise, tokens=tokens, tokens_mask=mask)
        tokens[:, 3:] += 5
        assert torch.equal(network(x, c_noise, tokens=tokens, tokens_mask=mask), base)
        assert torch.allclose(network(x, c_noise, tokens=tokens[:, :3]), base, atol=1e-5)


def test_samples_do_not_mix():
    network = shake(UNet(**TINY, attention_factors=[1, 2], scale_shift_norm=True, resblock_updown=True))
    x, c_noise = torch.randn(3, 4, 8, 8), torch.tensor([1.0, 2.0, 3.0])
    with torch.no_grad():
        assert torch.allclose(network(x, c_noise)[1:2], network(x[1:2], c_noise[1:2]), atol=1e-5)


def test_attention_orders_differ_by_a_permutation_of_the_rows():
    legacy, new = (UNet(**TINY, attention_factors=[1, 2], legacy_attention_order=order) for order in (True, False))
    shake(legacy)
    state = legacy.state_dict()
    for key, value in state.items():
        if ".qkv." in key:
            state[key] = (
                value.unflatten(0, (2, 3, -1)).transpose(0, 1).flatten(0, 2)
            )  # (head, qkv, d) -> (qkv, head, d)
    new.load_state_dict(state)
    x, c_noise = torch.randn(2, 4, 8, 8), torch.ones(2)
    assert torch.allclose(legacy(x, c_noise), new(x, c_noise), atol=1e-5)


def test_bf16_training_follows_fp32():
    network = shake(UNet(**TINY, attention_factors=[1, 2], tokens_width=5)).train()
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
    [
        (dict(num_heads=None), "exactly one"),
        (dict(head_channels=8), "exactly one"),
        (dict(norm_groups=5), "norm_groups"),
        (dict(num_heads=3), "num_heads"),
    ],
)
def test_impossible_architectures_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNet(**TINY | arguments)


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
        UNet(**TINY)(torch.zeros(shape), torch.ones(1), **given)


def test_linear_projections_are_1x1_convolutions_with_other_shapes():
    table = dict(
        channels=8, multipliers=[1, 2], num_blocks=1, attention_factors=[1, 2], head_channels=4, norm_groups=4,
        tokens_width=6,
    )  # fmt: skip
    conv, linear = UNet(3, 3, **table), UNet(3, 3, **table, linear_projections=True)
    for parameter in conv.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    shapes = {name: p.shape for name, p in linear.named_parameters()}
    differing = {name for name, p in conv.named_parameters() if p.shape != shapes[name]}
    assert differing and all(name.endswith(("proj_in.weight", "proj_out.weight")) for name in differing)
    linear.load_state_dict({name: p.reshape(shapes[name]) for name, p in conv.named_parameters()})
    x, level, tokens = torch.randn(2, 3, 8, 8), torch.tensor([0.1, 3.0]), torch.randn(2, 5, 6)
    assert torch.equal(conv(x, level, tokens=tokens), linear(x, level, tokens=tokens))


def test_which_attentions_stand_where_is_a_function_of_width_and_factor():
    """As in eDiff-I: self-attention at other factors than cross-attention, and none in the middle."""

    def attentions(width: int, factor: int | None) -> list[torch.nn.Module]:
        own = [AttentionBlock(width, 2, norm_groups=4)] if factor == 2 else []
        return [*own, *([SpatialTransformer(width, 2, 5, norm_groups=4)] if factor in (1, 2) else [])]

    blocks = Blocks(8, [1, 2, 2], 1, attentions, norm_groups=4)
    layers, widths = blocks.encoder(4)
    kinds = [[type(layer).__name__ for layer in entry] for entry in layers]
    assert kinds[1][1:] == ["SpatialTransformer"] and kinds[3][1:] == ["AttentionBlock", "SpatialTransformer"]
    assert len(kinds[5]) == 1 and len(blocks.middle(widths[-1])) == 2
    h = layers[0](torch.randn(2, 4, 8, 8))
    cond = Cond(torch.randn(2, blocks.emb_width), Context(torch.randn(2, 3, 5)))
    for entry in layers[1:]:
        h = apply(entry, h, cond)
    assert apply(blocks.middle(widths[-1]), h, cond).shape == (2, 16, 2, 2)
