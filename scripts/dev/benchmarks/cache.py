"""Batches of cached latents and text, 20 KB a sample, against webdataset's `.decode()` of the same arrays in a tar.

Ours are batches in the order of the plan, and what the training loader makes of them: its plan, draws and checks.
Webdataset gives single samples as they lie, which is less work.
"""

import json
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import webdataset as wds
from safetensors.numpy import save_file

from benchmarks.measure import compare
from ldm.data.cache import BAD, CROP, MANIFEST, MOMENTS, SIZE, Cache, file_names
from ldm.data.module import ShardData
from ldm.data.plan import Plan
from ldm.data.shards import ShardSet
from ldm.data.transforms import View
from ldm.device import keep_memory

GOAL = 30.0
NUM_SAMPLES = 4096
IMAGE_SIZE = 128
ENCODERS = {"text": {"digest": "text"}}


def run(options: dict) -> None:
    """Print the suite's table."""
    keep_memory()  # as training does
    batch_size = options["batch_size"] or 64
    with TemporaryDirectory() as folder:
        tar = _write(Path(folder))
        data = ShardData(str(tar), IMAGE_SIZE, batch_size, cache=folder)
        data.read_cache("benchmark", ENCODERS, images=())
        [shards] = [part.shards for part in data.parts()]
        cache, views = Cache(Path(folder), shards, ["text"], None), [View()] * batch_size
        count = NUM_SAMPLES // batch_size
        indices = Plan(NUM_SAMPLES, seed=0).indices(np.arange(count * batch_size)).reshape(count, batch_size).tolist()

        def batches() -> None:
            assert sum(len(cache.rows(some, views)["moments"]) for some in indices) == count * batch_size

        def loader() -> None:
            assert sum(len(batch["moments"]) for batch in islice(data.train_loader(), count)) == count * batch_size

        def theirs() -> None:
            assert sum(1 for _ in wds.WebDataset(str(tar), shardshuffle=False).decode()) == NUM_SAMPLES

        print(f"one thread, {NUM_SAMPLES} samples of 20 kB")
        for name, ours, goal in (("cached batches", batches, GOAL), ("the training loader", loader, None)):
            contestants = {f"ours, {batch_size} samples": ours, "webdataset decode()": theirs}
            seconds = compare(name, contestants, options["repeats"], goal)
            print(f"{'':<22} {count * batch_size / seconds:.0f} samples per CPU second")


def _write(folder: Path) -> Path:
    """A tar of .npy members, and the same arrays as its cache."""
    generator = np.random.default_rng(0)
    arrays = {
        MOMENTS: generator.standard_normal((NUM_SAMPLES, 8, 16, 16), np.float32).astype(np.float16),
        "text.tokens": generator.standard_normal((NUM_SAMPLES, 21, 384), np.float32).astype(np.float16),
        "text.mask": np.ones((NUM_SAMPLES, 21), bool),
    }
    tar = folder / "train-0.tar"
    with wds.TarWriter(str(tar)) as writer:
        for number in range(NUM_SAMPLES):
            rows = {f"{name}.npy": array[number] for name, array in arrays.items()}
            writer.write({"__key__": f"{number:06d}", **rows})
    [name] = file_names(ShardSet.open([tar]))
    size = np.full((NUM_SAMPLES, 2), IMAGE_SIZE, np.int32)
    save_file({SIZE: size, **arrays}, folder / name, metadata={BAD: json.dumps({})})
    made = {
        "image_size": IMAGE_SIZE,
        "crop": CROP,
        "decoder": "pil",
        "first_stage": "benchmark",
        "encoders": ENCODERS,
        "precision": "fp16",
        "codes": False,
        "flips": False,
    }
    (folder / MANIFEST).write_text(json.dumps(made))
    return tar
