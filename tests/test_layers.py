"""Layers: one attention whatever the kernel, embeddings and views as documented."""

import math

import pytest
import torch
from torch import nn

from ldm.networks import layers
from ldm.networks.layers import Frozen, attention, conv3x3, pointwise, sinusoid, to_grid, to_tokens, tuned
from ldm.networks.unet import UNet


def plain_attention(q, k, v, mask=None):
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("masked", [False, True])
def test_both_attention_kernels_compute_the_same(masked, monkeypatch):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    mask = torch.rand(2, 1, 1, 7) > 0.4 if masked else None
    expected = plain_attention(q, k, v, mask)
    assert torch.allclose(attention(q, k, v, mask), expected, atol=1e-6)

    low = [t.bfloat16() for t in (q, k, v)]
    trained = attention(low[0].clone().requires_grad_(), *low[1:], mask)  # plain products
    monkeypatch.setattr(layers, "BMM_LIMIT", 0)
    reference = attention(low[0].clone().requires_grad_(), *low[1:], mask)  # SDPA
    for out in (trained, reference):
        assert torch.allclose(out.float(), expected, atol=0.05)


@pytest.mark.parametrize("block", [1, 5 * 7, 3 * 5 * 7, 4 * 7, layers.BLOCK])
def test_attention_in_blocks_is_the_same_whatever_the_block(block: int, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    parts = [torch.randn(2, count, 3, 8).transpose(1, 2) for count in (5, 7, 7)]  # as heads are split from tokens
    expected, low = plain_attention(*parts), [part.bfloat16() for part in parts]
    exact = attention(*low)  # SDPA
    monkeypatch.setattr(layers, "BLOCKED_FROM", 7)
    monkeypatch.setattr(layers, "BLOCK", block)
    monkeypatch.setattr(layers.F, "scaled_dot_product_attention", None)
    found = attention(*low)
    assert found.shape == expected.shape and found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), expected, atol=0.03) and torch.allclose(found, exact, atol=0.03)


def test_blocks_of_attention_are_for_bf16_without_mask_and_gradient(monkeypatch: pytest.MonkeyPatch):
    def refused(*_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("taken in blocks")

    monkeypatch.setattr(layers, "_in_blocks", refused)
    q, k, v = (torch.randn(1, 2, 64, 8) for _ in range(3))
    low, mask = [part.bfloat16() for part in (q, k, v)], torch.ones(1, 1, 1, 64, dtype=torch.bool)
    attention(q, k, v)
    attention(*low, mask)
    attention(low[0][..., :9, :], low[1][..., :9, :], low[2][..., :9, :])
    trained = low[0].clone().requires_grad_()
    attention(trained, *low[1:]).sum().backward()
    assert trained.grad is not None
    with torch.no_grad(), pytest.raises(AssertionError, match="in blocks"):
        attention(trained, *low[1:])


def test_masked_positions_do_not_matter():
    q, k, v = (torch.randn(1, 1, 4, 8) for _ in range(3))
    mask = torch.tensor([True, True, False, False]).view(1, 1, 1, 4)
    before = attention(q, k, v, mask)
    k[:, :, 2:] = 9.0
    v[:, :, 2:] = -9.0
    assert torch.equal(attention(q, k, v, mask), before)


@pytest.mark.parametrize("size", [(4, 4), (2, 8), (1, 1)])
def test_both_convolution_kernels_compute_the_same(size, monkeypatch):
    torch.manual_seed(0)
    conv, weights = nn.Conv2d(6, 5, 3, padding=1), torch.randn(3, 5, *size)
    found = []
    for limit in (layers.GEMM_LIMIT, 0):
        monkeypatch.setattr(layers, "GEMM_LIMIT", limit)
        x = torch.ones(3, 6, *size).cumsum(1).requires_grad_()
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = conv3x3(conv, x)
        (out.float() * weights).sum().backward()
        found.append((out.float(), x.grad, conv.weight.grad, conv.bias.grad))
    for ours, theirs in zip(*found, strict=True):
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs, rtol=0.02, atol=0.02 * theirs.abs().max().item())
    assert torch.equal(conv3x3(conv, x), conv(x))  # fp32: torch's own


def test_sinusoid_is_cosine_first_with_frequencies_from_one_down():
    out = sinusoid(torch.tensor([0.0, 2.0]), 6)
    assert torch.equal(out[0], torch.tensor([1.0, 1, 1, 0, 0, 0]))
    frequencies = torch.tensor([1.0, 1e4 ** (-1 / 3), 1e4 ** (-2 / 3)])
    assert torch.allclose(out[1], torch.cat([(2 * frequencies).cos(), (2 * frequencies).sin()]))


def test_views_are_inverse_and_pointwise_is_the_convolution():
    x = torch.randn(2, 4, 3, 5)
    assert torch.equal(to_grid(to_tokens(x), x), x)
    conv = nn.Conv2d(4, 6, 1)
    assert torch.allclose(to_grid(pointwise(to_tokens(x), conv), x), conv(x), atol=1e-6)


def test_a_frozen_module_is_neither_trained_nor_saved():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = Frozen(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))

    holder = Holder().train()
    assert not list(holder.parameters()) and not holder.state_dict()
    module = holder.frozen.on(torch.device("cpu"))
    assert not module.training and not module[1].training
    assert not any(p.requires_grad for p in module.parameters())


def small_unet() -> UNet:
    torch.manual_seed(0)
    network = UNet(4, 4, 32, (1, 2), 1, (1, 2), head_channels=16, tokens_width=8)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


def evaluate(network: UNet) -> torch.Tensor:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    tokens = torch.ones(2, 3, 8).cumsum(1)
    with torch.no_grad():
        return network(x, torch.tensor([1.0, 5.0]), tokens=tokens)


def test_a_tuned_network_has_the_same_parameters_names_and_results():
    plain, used = small_unet(), small_unet().requires_grad_(False)
    parameters = list(used.parameters())
    assert tuned(used, torch.device("cpu")) is used
    assert all(one is other for one, other in zip(parameters, used.parameters(), strict=True))
    assert list(used.state_dict()) == list(plain.state_dict())
    assert used.input_blocks[1][0].in_layers[2].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(evaluate(used), evaluate(plain), rtol=1e-4, atol=1e-5)


def test_training_on_a_cpu_keeps_its_layout_and_its_bits():
    trained = tuned(small_unet(), torch.device("cpu"))
    assert torch.equal(evaluate(trained), evaluate(small_unet()))
    assert all(parameter.is_contiguous() for parameter in trained.parameters())


@pytest.mark.slow
def test_a_compiled_network_has_the_same_names_and_results():
    plain, compiled = small_unet(), tuned(small_unet(), torch.device("cpu"), compile=True)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(evaluate(compiled), evaluate(plain), rtol=1e-4, atol=1e-5)
