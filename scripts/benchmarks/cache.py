"""Batches of cached latents and text, 20 KB a sample, against webdataset's `.decode()` of the same arrays in a tar.

Ours are training batches in the plan's random order; webdataset gives single samples as they lie, which is less work.
"""

import json
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import webdataset as wds
from safetensors.numpy import save_file

from benchmarks.measure import compare
from data.cache import BAD, CROP, MANIFEST, MOMENTS, SIZE, file_names
from data.module import ShardData
from data.shards import ShardSet

GOAL = 30.0
NUM_SAMPLES = 4096
IMAGE_SIZE = 128


def run(options: dict) -> None:
    """Print the suite's table."""
    batch_size = options["batch_size"] or 64
    with TemporaryDirectory() as folder:
        tar = _write(Path(folder))
        data = ShardData(str(tar), IMAGE_SIZE, batch_size, cache=folder)
        data.read_cache("benchmark", {"text": {"digest": "text"}}, images=False)
        count = NUM_SAMPLES // batch_size

        def ours() -> None:
            assert sum(len(batch["moments"]) for batch in islice(data.train_loader(), count)) == count * batch_size

        def theirs() -> None:
            assert sum(1 for _ in wds.WebDataset(str(tar), shardshuffle=False).decode()) == NUM_SAMPLES

        contestants = {f"ours, batches of {batch_size}": ours, "webdataset decode()": theirs}
        print(f"one thread, {NUM_SAMPLES} samples of {tar.stat().st_size / NUM_SAMPLES / 1e3:.1f} kB in the tar")
        seconds = compare("cached latents + text", contestants, options["repeats"], GOAL)
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
    encoders = {"text": {"digest": "text"}}
    made = {"image_size": IMAGE_SIZE, "crop": CROP, "first_stage": "benchmark", "encoders": encoders, "flips": False}
    (folder / MANIFEST).write_text(json.dumps(made))
    return tar
