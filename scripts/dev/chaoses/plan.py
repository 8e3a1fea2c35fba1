"""Ranks, loader workers and shards in any numbers, changed in mid-epoch: every epoch must hold every sample once, and
every rank must get equally many micro-batches of equal size.
"""

import io
import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from PIL import Image

from chaoses.outcome import Outcome
from ldm.data.module import ShardData
from ldm.data.writing import write_shard

GOAL = "each sample once per epoch, equal steps per rank: worlds 1-8, workers 0-4, shards 1-64"
RUNS = 500
MAX_SHARDS = 64
MAX_SHARD_SAMPLES = 6
NUM_EPOCHS = 2


def run(runs: int, rng: random.Random, folder: Path) -> Outcome:
    """Distribute the same data set in another way in each trial, by the objects that training uses."""
    outcome = Outcome()
    paths, keys = _write(folder, rng)
    for number in range(runs):
        chosen = rng.sample(range(MAX_SHARDS), rng.randint(1, MAX_SHARDS))
        expected = [key for place in chosen for key in keys[place]]
        options = {"seed": number, "shuffle_block": rng.choice([None, rng.randint(1, 50)])}
        batch_size = 840 if rng.random() < 0.2 else 8 * rng.randint(1, 3) * rng.choice([1, 3, 5, 7])
        # from one distribution to another, in the middle of an epoch
        cut = rng.randint(0, NUM_EPOCHS * len(expected) // batch_size)
        steps = -(-NUM_EPOCHS * len(expected) // batch_size) + 1
        found, problems, ways = [], [], []
        for first, last in ((0, cut), (cut, steps)):
            way = _way(batch_size, rng)
            ways.append("ranks {} x workers {} x accumulation {}".format(*way))
            data = ShardData([str(paths[i]) for i in chosen], 8, batch_size, accumulation=way[2], **options)
            found += _read(data, first * batch_size, last - first, *way[:2], problems)
        problems += _lost(found, expected)
        shape = f"{len(chosen)} shards, batch {batch_size}, shuffle_block {options['shuffle_block']}"
        outcome.note(f"trial {number}: {shape}, {' then '.join(ways)}", problems)
    return outcome


def _write(folder: Path, rng: random.Random) -> tuple[list[Path], list[list[str]]]:
    """Small shards of uneven sizes, and the keys in each."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    paths = [folder / f"{place:02d}.tar" for place in range(MAX_SHARDS)]
    keys = [[f"{place}-{i}" for i in range(rng.randint(1, MAX_SHARD_SAMPLES))] for place in range(MAX_SHARDS)]
    for path, own in zip(paths, keys, strict=True):
        write_shard(path, [{"__key__": key, "png": file.getvalue()} for key in own])
    return paths, keys


def _way(batch_size: int, rng: random.Random) -> tuple[int, int, int]:
    """(ranks, loader workers, accumulation) that divide the batch."""
    world_size = rng.choice([ranks for ranks in range(1, 9) if batch_size % ranks == 0])
    parts = [count for count in (1, 2, 3) if batch_size % (world_size * count) == 0]
    return world_size, rng.randint(0, 4), rng.choice(parts)


def _read(
    data: ShardData, start: int, steps: int, world_size: int, num_workers: int, problems: list[str]
) -> list[tuple[int, str]]:
    """(number, key) of all samples of so many steps; each worker of each rank is asked for its own micro-batches."""
    rows: list[tuple[int, str]] = []
    count = steps * data.accumulation
    for rank in range(world_size):
        stream = data.train_loader(start, rank, world_size).loader.dataset
        sizes = Counter()
        for batch in _in_turn(
            [stream.micro_batches(w, max(1, num_workers)) for w in range(max(1, num_workers))], count
        ):
            sizes[len(batch["key"])] += 1
            rows += zip(batch["number"].tolist(), batch["key"], strict=True)
        if sizes != Counter({data.batch_size // (world_size * data.accumulation): count}) and count:
            problems.append(f"rank {rank} had micro-batches of {dict(sizes)}")
    return rows


def _in_turn(workers: list[Iterator[dict]], count: int) -> Iterator[dict]:
    """The first `count` batches as a loader takes them from its workers."""
    return islice((next(workers[i % len(workers)]) for i in range(count)), count)


def _lost(rows: list[tuple[int, str]], expected: list[str]) -> list[str]:
    rows = sorted(rows)
    numbers, keys = [number for number, _ in rows], [key for _, key in rows]
    if numbers != list(range(len(rows))):
        return ["sample numbers are missing or occur twice"]
    size = len(expected)
    epochs = [Counter(keys[epoch * size : (epoch + 1) * size]) for epoch in range(NUM_EPOCHS)]
    return [f"epoch {number} is not every sample once" for number, own in enumerate(epochs) if own != Counter(expected)]
