"""Caches, lists of prompts and of samples to leave out, and words of the command line."""

import json
import random
from pathlib import Path

import torch
from safetensors.torch import save as tensors_of

import sample
from chaoses import mutations as spoil
from chaoses.file_kinds import Kind
from ldm.config import compose
from ldm.data.cache import CacheFile, check, read_manifest
from ldm.data.filters import Filters


def _cache_json(rng: random.Random) -> bytes:
    encoders = {"text": {"model": "x", "digest": "0" * 64}}
    facts = {"image_size": 48, "crop": "centre", "decoder": "pil", "first_stage": "f", "flips": True}
    return json.dumps({**facts, "encoders": encoders}).encode()


def _read_cache_json(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    (folder / "cache.json").write_bytes(content)
    check(folder, read_manifest(folder), 48, "pil", "f", {"text": {"model": "x", "digest": "0" * 64}})
    return []


def _cached_rows(rng: random.Random) -> bytes:
    rows = {"moments": torch.ones(6, 8, 6, 6), "size": torch.full((6, 2), 48, dtype=torch.int32)}
    return tensors_of(rows, {"bad": json.dumps({"2": ["broken image", "x"]})})


def _read_cached_rows(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    (folder / "x.safetensors").write_bytes(content)
    CacheFile(folder / "x.safetensors", [])
    return []


def _read_prompts(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    (folder / "p.txt").write_bytes(content)
    asked = {"prompt": None, "prompts": f"{folder}/p.txt", "num_images": 1, "batch_size": 1, "label": None}
    sample.read_conditions(asked)
    return []


def _read_excluded(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    (folder / "x.txt").write_bytes(content)
    _ = Filters(exclude=f"{folder}/x.txt").hashes
    return []


def _read_words(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    """A word of the command line."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return []
    compose("config", ["experiment=quickstart/autoencoder", text.strip("\n")])
    return []


KINDS: dict[str, Kind] = {
    "cache.json": Kind(_cache_json, spoil.JSON, _read_cache_json),
    "rows of a cache": Kind(_cached_rows, spoil.TENSORS, _read_cached_rows),
    "prompts": Kind(lambda rng: "a red heart\nein grünes Herz\n".encode(), spoil.TEXT, _read_prompts),
    "excluded": Kind(lambda rng: b"key1\n" + b"a" * 64 + b"\n", spoil.TEXT, _read_excluded),
    "word": Kind(
        lambda rng: rng.choice((b"data.train={a,b}.tar", b"optimizer.lr=1e-4", b"autoencoder.multipliers=[1,2]")),
        spoil.TEXT,
        _read_words,
    ),
}
MADE_ONCE = ()
