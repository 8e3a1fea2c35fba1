"""The data plan of 10^9 samples and 1,024 ranks, in one process: time, memory, and that every sample has one reader.

A whole epoch is looked at for a smaller data set; of the large one the steps at both ends of an epoch, and that its
order takes no sample twice among as many as memory allows.
"""

import time

import numpy as np

from benchmarks.findings import Row, judged
from benchmarks.measure import resident, spread
from ldm.data.plan import BatchPlan, Plan

NUM_SAMPLES, NUM_RANKS, BATCH_SIZE = 10**9, 1024, 8192
SHUFFLE_BLOCK = 10_000
WHOLE = 2**20  # samples of the data set whose epoch is looked at as a whole
LONG = 4_000_000  # consecutive positions of the large one
GOAL_MS, GOAL_US, GOAL_MIB = 1.0, 5.0, 64.0  # our own


def run(options: dict) -> None:
    """Print the suite's table. AssertionError if a sample has no reader or two."""
    before = resident("VmRSS")
    last = NUM_SAMPLES // BATCH_SIZE  # the step in which the epoch ends
    for name, block in (("all over", None), (f"in blocks of {SHUFFLE_BLOCK}", SHUFFLE_BLOCK)):
        plan = Plan(NUM_SAMPLES, seed=0, shuffle_block=block)
        seconds = []
        for step in (0, last // 2, last):
            read = []
            for rank in range(NUM_RANKS):
                share = BatchPlan(BATCH_SIZE, rank, NUM_RANKS, 1, start=step * BATCH_SIZE)
                began = time.process_time()
                read.append((share.numbers(0), plan.indices(share.numbers(0))))
                seconds.append(time.process_time() - began)
            numbers, indices = (np.concatenate(part) for part in zip(*read, strict=True))
            assert np.array_equal(numbers, np.arange(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)), "a partition"
            assert indices.min() >= 0 and indices.max() < NUM_SAMPLES
            for epoch in np.unique(numbers // NUM_SAMPLES):
                own = indices[numbers // NUM_SAMPLES == epoch]
                assert len(np.unique(own)) == len(own), "no sample twice in an epoch"
        print(f"order {name}: {3 * NUM_RANKS} shares of {BATCH_SIZE // NUM_RANKS} are three whole batches")
        row = Row(
            f"plan of 10^9, {name}: a rank's share of a step", 1e3 * float(np.median(seconds)), GOAL_MS, at_most=True,
            unit="ms", spread=spread(seconds),
        )  # fmt: skip
        print(judged(row), flush=True)
    plan = Plan(NUM_SAMPLES, seed=0)
    began = time.process_time()
    indices = np.concatenate([
        plan.indices(np.arange(start, start + BATCH_SIZE)) for start in range(0, LONG, BATCH_SIZE)
    ])  # fmt: skip
    each = 1e6 * (time.process_time() - began) / len(indices)
    indices.sort()
    assert (np.diff(indices) > 0).all(), "no sample twice"
    del indices
    print(f"{LONG:,} positions in batches of {BATCH_SIZE}: no sample twice")
    print(judged(Row("plan of 10^9, whole batches: a sample", each, GOAL_US, at_most=True, unit="us")))
    whole = Plan(WHOLE, seed=0)
    seen = np.zeros(WHOLE, np.int64)
    for rank in range(NUM_RANKS):
        share = BatchPlan(BATCH_SIZE, rank, NUM_RANKS, 1, start=0)
        numbers = np.concatenate([share.numbers(step) for step in range(WHOLE // BATCH_SIZE)])
        np.add.at(seen, whole.indices(numbers), 1)
    assert (seen == 1).all(), "every sample once"
    print(f"an epoch of {WHOLE:,} samples over {NUM_RANKS} ranks: every sample once")
    print(judged(Row("plan of 10^9: memory", resident("VmRSS") - before, GOAL_MIB, at_most=True, unit="MiB")))
