"""Who reads what, when: pure functions of (seed, epoch, position), in O(1) memory and without history.

A run's samples are numbered 0, 1, 2, ...; number n is position n % N of epoch n // N, and a keyed permutation of
0..N-1 (a Feistel network with cycle walking, Black and Rogaway 2002) turns the position into a sample's index.
"""

import hashlib

import numpy as np

ROUNDS = 8


class Plan:
    """The endless order of a data set of `num_samples` samples."""

    def __init__(self, num_samples: int, seed: int):
        self.num_samples = num_samples
        self.seed = seed

    def indices(self, numbers: np.ndarray) -> np.ndarray:
        """Sample numbers of the run, int64 [n] -> indices of samples, int64 [n]."""
        epochs, positions = np.divmod(np.asarray(numbers, dtype=np.int64), self.num_samples)
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = permute(positions[here], self.num_samples, f"{self.seed}/order/{epoch}")
        return indices

    def successor(self, number: int, steps: int) -> int:
        """The index `steps` places after `number` in its own epoch's order, which closes to a ring."""
        epoch, position = divmod(number, self.num_samples)
        place = epoch * self.num_samples + (position + steps) % self.num_samples
        return int(self.indices(np.array([place]))[0])


def permute(positions: np.ndarray, num: int, key: str) -> np.ndarray:
    """A pseudo-random bijection of 0..num-1 for each key; positions and result int64 [n]."""
    bits = max(2, (num - 1).bit_length())
    shift = np.uint64(bits // 2)
    left_mask, right_mask = np.uint64((1 << bits - bits // 2) - 1), np.uint64((1 << bits // 2) - 1)
    keys = np.frombuffer(hashlib.shake_256(key.encode()).digest(8 * ROUNDS), dtype="<u8")
    values = np.asarray(positions).astype(np.uint64)
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():  # the network permutes 0..2^bits-1 < 2 num: walk on until back inside
        left, right = values[outside] >> shift, values[outside] & right_mask
        for even, odd in keys.reshape(-1, 2):
            left = left ^ (_mix(right ^ even) & left_mask)
            right = right ^ (_mix(left ^ odd) & right_mask)
        values[outside] = left << shift | right
        outside = values >= num
    return values.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64; overflow wraps as intended."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


class BatchPlan:
    """The share of one rank: micro-batches cut from each global batch, so that the ranks' union never changes.

    Global batch s is numbers start + s * batch_size ..; micro-batch a of rank r is its slice a * world_size + r.
    """

    def __init__(self, batch_size: int, rank: int, world_size: int, accumulation: int, start: int):
        parts = world_size * accumulation
        if batch_size % parts:
            below, above = batch_size // parts * parts or parts, -(-batch_size // parts) * parts
            raise ValueError(
                f"data.batch_size={batch_size} is not divisible by {world_size} ranks x accumulation={accumulation} "
                f"= {parts}; the nearest that are: {below} and {above}"
            )
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.accumulation = accumulation
        self.start = start
        self.rank_batch = batch_size // parts

    def numbers(self, micro_batch: int) -> np.ndarray:
        """Sample numbers of this rank's `micro_batch`-th micro-batch since `start`, int64 [rank_batch]."""
        step, part = divmod(micro_batch, self.accumulation)
        place = (part * self.world_size + self.rank) * self.rank_batch
        return self.start + step * self.batch_size + place + np.arange(self.rank_batch)
