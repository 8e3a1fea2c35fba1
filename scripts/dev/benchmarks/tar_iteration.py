"""Undecoded samples from local tar files, against webdataset's own iteration of the same files."""

import tempfile
from itertools import islice
from pathlib import Path

import webdataset as wds

from benchmarks.measure import compare
from ldm.data.shards import ShardSet
from ldm.data.streams import MemberStream
from ldm.data.writing import write_shard

GOAL = 10.0
NUM_SHARDS = 8
SHARD_SAMPLES = 1000
IMAGE_BYTES = 12_000


def iteration(options: dict) -> None:
    """All samples of a few shards of an image, a caption and metadata each, as dictionaries of bytes."""
    with tempfile.TemporaryDirectory() as folder:
        _iterate(Path(folder), options["repeats"])


def _iterate(folder: Path, repeats: int) -> None:
    members = {"jpg": bytes(IMAGE_BYTES), "txt": b"a caption of some length", "json": b'{"caption": "the same"}'}
    paths = [folder / f"{shard}.tar" for shard in range(NUM_SHARDS)]
    for path in paths:
        write_shard(path, ({"__key__": f"{i:06d}", **members} for i in range(SHARD_SAMPLES)))
    shards = ShardSet.open(paths)
    total = len(shards)
    urls = [str(path) for path in paths]

    def ours() -> int:
        return sum(len(sample["jpg"]) for sample in islice(MemberStream(shards, seed=0), total))

    def webdataset() -> int:
        return sum(len(sample["jpg"]) for sample in wds.WebDataset(urls, shardshuffle=False))

    assert ours() == webdataset() == total * IMAGE_BYTES
    contestants = {"ours, shuffled": ours, "webdataset, in order": webdataset}
    seconds = compare(f"{total} raw samples", contestants, repeats, GOAL)
    print(f"{'':<22} {total / seconds:,.0f} samples per CPU second")
