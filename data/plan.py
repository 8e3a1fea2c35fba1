"""Who reads what, when: pure functions of (seed, epoch, position), in O(1) memory and without history.

A run's samples are numbered 0, 1, 2, ...; number n is position n % N of epoch n // N, and a keyed permutation of
0..N-1 (a Feistel network with cycle walking, Black and Rogaway 2002) turns the position into a sample's index.
"""

import hashlib

import numpy as np

from ldm.data.user_error import UserError

ROUNDS = 8
WINDOW_BLOCKS = 16


class Plan:
    """The endless order of a data set of `num_samples` samples.

    With `shuffle_block`, neighbours are read at about the same time: blocks of so many consecutive samples come in
    random order, and samples are mixed within windows of 16 blocks. `purpose` tells orders of one seed apart.
    """

    def __init__(self, num_samples: int, seed: int, shuffle_block: int | None = None, purpose: str = "order"):
        self.num_samples = num_samples
        self.seed = seed
        self.shuffle_block = shuffle_block
        self.purpose = purpose

    def indices(self, numbers: np.ndarray) -> np.ndarray:
        """Sample numbers of the run, int64 [n] -> indices of samples, int64 [n]."""
        epochs, positions = np.divmod(np.asarray(numbers, dtype=np.int64), self.num_samples)
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            key = f"{self.seed}/{self.purpose}/{epoch}"
            if self.shuffle_block is None:
                indices[here] = permute(positions[here], self.num_samples, key)
            else:
                indices[here] = permute_blocks(positions[here], self.num_samples, self.shuffle_block, key)
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


def permute_blocks(positions: np.ndarray, num: int, block: int, key: str) -> np.ndarray:
    """A pseudo-random bijection of 0..num-1 that keeps neighbours near: int64 [n] to int64 [n].

    0..num-1 in blocks of `block` (the last may be shorter), the blocks in random order, and of this sequence each
    window of 16 blocks' length permuted on its own.
    """
    places = np.empty_like(positions)
    length = WINDOW_BLOCKS * block
    for window in np.unique(positions // length):
        here = positions // length == window
        start = int(window) * length
        places[here] = start + permute(positions[here] - start, min(length, num - start), f"{key}/window {window}")
    whole, rest = divmod(num, block)
    if whole == 0:
        return places
    # the short block, if there is one, is put between the whole ones at a random slot
    short = int(permute(np.zeros(1, np.int64), whole + 1, f"{key}/short block")[0]) if rest else whole
    in_short = (places >= short * block) & (places < short * block + rest)
    slots, offsets = np.divmod(places - np.where(places >= short * block, rest, 0), block)
    blocks = permute(np.clip(slots, 0, whole - 1), whole, f"{key}/blocks")
    return np.where(in_short, whole * block + places - short * block, blocks * block + offsets)


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
            raise UserError(
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
