"""Loading: from tar shards on disk to batches, against webdataset."""

import io
import itertools
import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torchvision import transforms

from benchmarks.measure import compare
from benchmarks.tar_iteration import iteration
from ldm.data.fields import Caption
from ldm.data.module import ShardData
from ldm.data.writing import write_shard

QUICKSTART = Path(__file__).resolve().parents[3] / "data" / "quickstart" / "train-00000.tar"
HEIGHT, WIDTH = 512, 640
NUM_IMAGES = 64
BATCH_SIZE = 16
IMAGE_SIZES = (256, 64)
DECODING_GOAL = 3.0


def run(options: dict) -> None:
    """Print the suite's tables."""
    iteration(options)
    print(f"torch {torch.__version__}, one thread, JPEG {WIDTH}x{HEIGHT}, {NUM_IMAGES} images a run")
    decoding(options)


def decoding(options: dict) -> None:
    """Decode, resize, crop, flip, batch; the peer decodes and resizes with PIL, as its documentation does."""
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "photographs.tar"
        size = write_shard(shard, photographs())["bytes"]
        print(f"{size / NUM_IMAGES / 1e3:.0f} kB an image")
        for image_size in [options["image_size"]] if options["image_size"] else IMAGE_SIZES:
            peers = {
                f"webdataset, PIL {name}": partial(_webdataset, shard, image_size, mode)
                for name, mode in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC))
            }
            for decoder, goal in (("fast", DECODING_GOAL), ("pil", None)):
                ours = {f"ours, decoder={decoder}": partial(_ours, shard, image_size, decoder)}
                seconds = compare(f"decode to {image_size} px", ours | peers, options["repeats"], goal)
                print(f"{'':<22} {NUM_IMAGES / seconds:.0f} images per CPU second")


def photographs() -> Iterator[dict]:
    """The built-in images, larger, with a texture that costs a JPEG as much as a photograph's."""
    generator = np.random.default_rng(0)
    source = wds.WebDataset(str(QUICKSTART), shardshuffle=False)
    for sample in itertools.islice(source, NUM_IMAGES):
        image = Image.open(io.BytesIO(sample["webp"])).convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        coarse = generator.normal(0, 25, (HEIGHT // 4, WIDTH // 4, 3)).repeat(4, 0).repeat(4, 1)
        pixels = np.asarray(image) + coarse + generator.normal(0, 5, (HEIGHT, WIDTH, 1))
        file = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
        facts = json.dumps({"caption": json.loads(sample["json"])["caption"]})
        yield {"__key__": sample["__key__"], "jpg": file.getvalue(), "json": facts.encode()}


def _ours(shard: Path, image_size: int, decoder: str) -> None:
    data = ShardData(
        str(shard), image_size, BATCH_SIZE, fields={"caption": Caption()}, horizontal_flip_prob=0.5, random_crop=True,
        decoder=decoder,
    )  # fmt: skip
    for _ in itertools.islice(data.train_loader(), NUM_IMAGES // BATCH_SIZE):
        pass


def _webdataset(shard: Path, image_size: int, mode: Image.Resampling) -> None:
    prepare = transforms.Compose([
        transforms.Resize(image_size, transforms.InterpolationMode(mode.name.lower())),
        transforms.RandomCrop(image_size),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(0.5, 0.5),
    ])  # fmt: skip
    source = wds.WebDataset(str(shard), shardshuffle=False).decode("pil").to_tuple("jpg", "json")
    for _ in source.map_tuple(prepare, lambda facts: facts["caption"]).batched(BATCH_SIZE):
        pass
