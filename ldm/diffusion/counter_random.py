"""Addressed randomness: a draw is a pure function of (seed, purpose, sample number), never of batch, rank or order.

Counter-based Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) in int64 tensor
operations, so that a resumed run repeats its draws without any saved generator state. It holds no state itself.
"""

import hashlib
import math
from typing import Protocol

import torch
from torch import Tensor


class Normal(Protocol):
    """The signature of `normal`, which what draws in its place has too."""

    def __call__(self, seed: int, purpose: str, numbers: Tensor, shape: tuple[int, ...], stream: int = 0) -> Tensor:
        """Standard normals [B, *shape], float32, for sample numbers [B]."""


_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_NUM_ROUNDS = 10


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low half of a 32 x 32 bit product, with a `multiplier` of 2^31 or more.

    As int64 must never overflow, it is taken less 2^32, which makes the product negative, and `word` * 2^32 is added.
    """
    product = word * (multiplier - (1 << 32))
    return (product >> 32) + word, product & _WORD


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Four 32-bit words (as int64) for each 128-bit counter, given as four broadcastable int64 tensors of words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def _words(seed: int, purpose: str, numbers: Tensor, num_blocks: int, stream: int) -> tuple[Tensor, ...]:
    """Four words [B, num_blocks] at counter (number low, number high, block, stream)."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    key = (int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little"))
    number = numbers.to(torch.int64).unsqueeze(1)
    block = torch.arange(num_blocks, device=numbers.device)
    return philox((number & _WORD, number >> 32 & _WORD, block, torch.full_like(block, stream)), key)


def uniform(seed: int, purpose: str, numbers: Tensor, count: int = 1, stream: int = 0) -> Tensor:
    """Uniforms [B, count] in the open interval (0, 1), float64, for sample numbers [B]."""
    w0, w1, w2, w3 = _words(seed, purpose, numbers, (count + 1) // 2, stream)
    # 52 bits, then the middle of the cell: an odd multiple of 2^-53 is exact and is neither 0 nor 1.
    bits = torch.stack([(w0 << 20) | (w1 >> 12), (w2 << 20) | (w3 >> 12)], dim=2).flatten(1)[:, :count]
    return (2 * bits + 1).double() * 2.0**-53


def normal(seed: int, purpose: str, numbers: Tensor, shape: tuple[int, ...], stream: int = 0) -> Tensor:
    """Standard normals [B, *shape], float32, for sample numbers [B] (Box-Muller, |n| < 6.8).

    The transform runs in float64: rounded to float32, its last bit then does not depend on the vector width or device.
    """
    size = math.prod(shape)
    w0, w1, w2, w3 = _words(seed, purpose, numbers, (size + 3) // 4, stream)
    radius = torch.stack([w0, w2], dim=2).double().add(0.5).mul(2.0**-32).log().mul(-2).sqrt()
    angle = torch.stack([w1, w3], dim=2).double().add(0.5).mul(2 * math.pi * 2.0**-32)
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=3)  # [B, num_blocks, 2, 2]
    return pairs.flatten(1)[:, :size].reshape(-1, *shape).float()
