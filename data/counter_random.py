"""Addressed random numbers for data: a draw depends on (seed, purpose, number) and on nothing else.

Philox4x32-10 (Salmon et al. 2011): key = (seed, purpose), counter = (number, block). Written here because numpy's own
Philox costs 100 us for each counter; this one takes a batch of numbers at once.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
ROUNDS = 10
WORD = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def uniform(seed: int, purpose: str, numbers: np.ndarray, count: int = 1) -> np.ndarray:
    """Uniform float64 [n, count] in [0, 1) for the sample numbers, int64 [n]."""
    key = np.frombuffer(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], dtype="<u4").astype(np.uint64)
    numbers = np.asarray(numbers).astype(np.uint64)[:, None]
    blocks = np.arange((count + 1) // 2, dtype=np.uint64)[None]
    counter = np.broadcast_arrays(numbers & WORD, numbers >> HALF, blocks, np.zeros_like(blocks))
    words = philox(counter, key)
    pairs = np.stack([words[0] << HALF | words[1], words[2] << HALF | words[3]], axis=-1)  # [n, blocks, 2]
    return ((pairs >> np.uint64(11)) * 2.0**-53).reshape(len(numbers), -1)[:, :count]


def philox(counter: Sequence[np.ndarray], key: np.ndarray) -> list[np.ndarray]:
    """The four 32-bit words for each counter; words are held in uint64 arrays."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        low, high = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = high >> HALF ^ c1 ^ k0, high & WORD, low >> HALF ^ c3 ^ k1, low & WORD
        k0, k1 = k0 + WEYL[0] & WORD, k1 + WEYL[1] & WORD
    return [c0, c1, c2, c3]


def generator(seed: int, purpose: str, number: int) -> np.random.Generator:
    """Any number of draws of any kind for one sample number; the same as long as numpy keeps how it makes them."""
    key = np.frombuffer(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:16], dtype="<u8")
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, number]))
