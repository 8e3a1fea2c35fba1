"""How memory and time grow with the number of samples of a data set: opening it, and reading it in the plan's order.

Each number has a process of its own. Memory is what it has resident beyond its imports, indices that are mapped too.
"""

import time
from itertools import islice
from multiprocessing import get_context

from benchmarks.findings import Curve, Row, curves, judged
from benchmarks.many_shards import SHARD_SAMPLES, data_of, many_shards
from benchmarks.measure import resident
from ldm.data.module import ShardData

GOAL = 64.0  # bytes a sample
SIZES = (1_000, 10_000, 100_000, 1_000_000)
BATCH_SIZE, NUM_BATCHES = 64, 300  # what is read: 19,200 samples, over all shards


def run(options: dict) -> None:
    """Print the suite's table."""
    found = {}
    for size in SIZES:  # forked: all begin with the same imports, and what one makes is not in the next one's memory
        with get_context("fork").Pool(1) as pool:
            found[size] = pool.apply(_measured, (size,))
    print("samples       resident      own     mapped   opening: first, again   a sample read, in blocks")
    for size, own in found.items():
        memory = f"{own['mib']:8.1f} MiB {own['own_mib']:8.1f} {own['mib'] - own['own_mib']:8.1f}"
        opening = f"{own['first_s']:10.2f} s {own['again_s']:8.3f} s"
        print(f"{size:<10} {memory} {opening} {1e6 * own['read_s']:12.0f} us {1e6 * own['near_s']:8.0f} us", flush=True)
    few, many = SIZES[0], SIZES[-1]
    growth = 2**20 * (found[many]["mib"] - found[few]["mib"]) / (many - few)
    print(judged(Row(f"memory a sample, {few:,} to {many:,}", growth, GOAL, at_most=True, unit="bytes")))
    lines = {name: (list(SIZES), [found[size][key] for size in SIZES])
             for name, key in (("resident", "mib"), ("of this its own", "own_mib"))}  # fmt: skip
    curves.append(Curve("memory of a data set", "samples", "MiB", lines))
    lines = {name: (list(SIZES), [1e6 * found[size][key] for size in SIZES])
             for name, key in (("read", "read_s"), ("read in blocks", "near_s"))}  # fmt: skip
    lines |= {name: (list(SIZES), [1e6 * found[size][key] / size for size in SIZES])
              for name, key in (("open, first time", "first_s"), ("open again", "again_s"))}  # fmt: skip
    curves.append(Curve("time of a data set", "samples", "us a sample", lines))


def _measured(num_samples: int) -> dict[str, float]:
    """MiB and CPU seconds of one data set."""
    with many_shards(SHARD_SAMPLES) as shards:
        next(iter(data_of(shards, BATCH_SIZE).train_loader()))  # what comes once
    with many_shards(num_samples) as shards:
        before = resident("VmRSS"), resident("RssAnon")
        began = time.process_time()
        data_of(shards, BATCH_SIZE).setup()
        first = time.process_time() - began
        began = time.process_time()
        data = data_of(shards, BATCH_SIZE)
        data.setup()
        again = time.process_time() - began
        read = _read(data)
        mib, own = resident("VmRSS") - before[0], resident("RssAnon") - before[1]
        near = _read(data_of(shards, BATCH_SIZE, SHARD_SAMPLES))
    return {"mib": mib, "own_mib": own, "first_s": first, "again_s": again, "read_s": read, "near_s": near}


def _read(data: ShardData) -> float:
    """CPU seconds of a sample in training batches."""
    loader = data.train_loader()
    began = time.process_time()
    count = sum(len(batch["key"]) for batch in islice(loader, NUM_BATCHES))
    return (time.process_time() - began) / count
