"""Kernels that sampling in bf16 chooses on a CPU, against torch's own: attention in blocks, norms of small maps."""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.measure import Case, compare
from ldm.networks.layers import attention
from ldm.networks.norm_silu import group_norm

GOAL = 1.0
SHAPES = ((4, 4, 256), (4, 2, 1024), (1, 2, 4096))  # batch, heads, positions; 32 numbers a head, as in the U-Net
HEAD_WIDTH, CHANNELS, SIDE, GROUPS = 32, 128, 16, 32


def run(options: dict) -> None:
    """Print the suite's table."""
    print(f"torch {torch.__version__}, one thread, bf16 without gradients")
    for batch_size, heads, positions in SHAPES:
        shape = (3, options["batch_size"] or batch_size, heads, positions, HEAD_WIDTH)
        q, k, v = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
        torch.testing.assert_close(attention(q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=0.02, atol=0.02)
        cases = {"in blocks": _without_gradients(lambda q=q, k=k, v=v: attention(q, k, v)),
                 "SDPA": _without_gradients(lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v))}  # fmt: skip
        compare(f"attention, {positions}", cases, options["repeats"], GOAL)
    x = torch.randn(options["batch_size"] or 4, CHANNELS, SIDE, SIDE).bfloat16()
    x = x.contiguous(memory_format=torch.channels_last)
    norm, low = nn.GroupNorm(GROUPS, CHANNELS), nn.GroupNorm(GROUPS, CHANNELS).bfloat16()
    cases = {"fp32's, cast": _without_gradients(lambda: group_norm(norm, x)),
             "torch's": _without_gradients(lambda: low(x))}  # fmt: skip
    compare(f"norm, {SIDE} x {SIDE}, channels last", cases, options["repeats"], GOAL)


def _without_gradients(kernel: Case, times: int = 20) -> Case:
    """So many evaluations of a `kernel`."""

    def step() -> None:
        with torch.no_grad():
            for _ in range(times):
                kernel()

    return step
