"""SiLU after GroupNorm, fused: the same bits as the two apart, forward and backward, and less is kept."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.networks.norm_silu import group_norm, norm_silu


def apart(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return F.silu(norm(x))


def outcome(act: Callable, norm: nn.GroupNorm, x: Tensor, grad: Tensor) -> list[Tensor]:
    """The output and the gradients of x, weight and bias."""
    x = x.clone().requires_grad_()
    norm.zero_grad()
    y = act(norm, x)
    y.backward(grad)
    return [y.detach(), x.grad, norm.weight.grad.clone(), norm.bias.grad.clone()]


@pytest.fixture
def norm() -> nn.GroupNorm:
    torch.manual_seed(0)
    norm = nn.GroupNorm(8, 32, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def in_fp32(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return F.silu(norm(x.float())).to(x.dtype)


@pytest.mark.parametrize(
    ("dtype", "layout", "side", "plain"),
    [
        (torch.float32, torch.contiguous_format, 6, apart),
        (torch.float32, torch.channels_last, 6, apart),
        (torch.bfloat16, torch.contiguous_format, 6, apart),
        (torch.bfloat16, torch.channels_last, 32, apart),
        (torch.bfloat16, torch.channels_last, 6, in_fp32),  # whose own kernel is slow
    ],
)
def test_the_bits_are_those_of_the_two_apart(
    norm: nn.GroupNorm, dtype: torch.dtype, layout: torch.memory_format, side: int, plain: Callable
):
    x, grad = (torch.randn(3, 32, side, side).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    for ours, theirs in zip(outcome(norm_silu, norm, x, grad), outcome(plain, norm, x, grad), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    normed, exact = group_norm(norm, x), norm(x.float())
    assert normed.dtype == dtype and torch.allclose(normed.float(), exact, atol=0.04 if dtype.itemsize == 2 else 0)
    assert normed.equal(norm(x)) or plain is in_fp32


def test_a_frozen_norm_passes_the_gradient_on(norm: nn.GroupNorm):
    x = torch.randn(2, 32, 4, 4)
    grads = []
    for act in (norm_silu, apart):
        given = x.clone().requires_grad_()
        act(norm.requires_grad_(False), given).square().sum().backward()
        grads.append(given.grad)
    assert torch.equal(*grads) and norm.weight.grad is None


def test_less_is_kept_for_the_backward(norm: nn.GroupNorm):
    x = torch.randn(2, 32, 4, 4, requires_grad=True)

    def kept(act: Callable) -> int:
        sizes: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.update({t.data_ptr(): t.numel()}) or t, lambda t: t
        ):
            y = act(norm, x)
        return sum(sizes.values()) if y.requires_grad else 0

    assert kept(norm_silu) <= kept(apart) - x.numel()
