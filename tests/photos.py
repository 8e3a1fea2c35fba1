"""Folders of small pictures, the shards that scripts/make_shards.py makes of them, and what is in those."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from ldm.data.fields import Field
from ldm.data.index import read_index
from ldm.data.making.make import make_shards
from ldm.data.module import ShardData
from scripts.make_shards import parse


def picture(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)


def captioned(folder: Path, num: int = 20) -> Path:
    for i in range(num):
        picture(folder / f"photo.{i}.{('jpg', 'png', 'webp')[i % 3]}", i)
        (folder / f"photo.{i}.txt").write_text(f"photo number {i}\n")
    return folder


def words(source: Path, out: Path, **options: object) -> list[str]:
    options = {"workers": 1, **options}
    return [f"source={source}", f"out={out}", *(f"{key}={value}" for key, value in options.items())]


def run(source: Path, out: Path, **options: object) -> dict:
    return make_shards(parse(words(source, out, **options)), Console(quiet=True))


def load(out: Path, fields: dict[str, Field]) -> list[dict]:
    data = ShardData(f"{out}/train-*.tar", 16, 4, validation=f"{out}/validation-*.tar", fields=fields)
    return [*islice(data.train_loader(), 4), *data.validation_loader()]


def facts_of(out: Path) -> dict[str, dict[str, Any]]:
    """name -> the .json member, of all samples."""
    found = {}
    for path in sorted(out.glob("*.tar")):
        shard, content = read_index(path), path.read_bytes()
        for i in range(len(shard)):
            extent = shard.members(i)["json"]
            facts = json.loads(content[extent.offset : extent.offset + extent.size])
            found[facts.pop("name")] = facts
    return found


def left_out(manifest: dict[str, Any]) -> dict[str, str]:
    """name -> kind, of all that went into no shard."""
    return {row["name"]: row["kind"] for row in manifest["skipped"]}
