"""Latents and embeddings made beforehand (scripts/encode.py), read by sample in the place of images; memory-mapped.

A cache is a folder: `cache.json` says what it was made with, and each image shard has a safetensors file named after
it and its content, with a row for each of its samples in their order. Nothing here writes one.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from data.errors import BadSample, ShardError
from data.samples import Sample, Samples
from data.shards import ShardSet
from data.transforms import View

MANIFEST = "cache.json"
CROP = "centre"
MIRRORED = ".mirrored"  # ends the name of what was made of the mirrored image
BAD = "bad"  # in a file's metadata: what was wrong with the samples that have no row worth reading
SIZE, CHOICES = "size", "choices"  # of the resized image, [N, 2]; where each sample's texts begin, [N + 1]
MOMENTS, CODES = "moments", "codes"  # what latents are made of: numbers, or those of a VQ first stage's codes
LATENTS = (MOMENTS, CODES)
IMAGE = "image."  # begins the name of what an encoder made of the image
OF_IMAGE = (*LATENTS, IMAGE)  # how names of what has a row for each sample begin; all else has one for each text


def file_names(shards: ShardSet) -> list[str]:
    """The name of each shard's file: what is in it goes with the shard's content, wherever the shard lies."""
    marks = zip(shards.shards, shards.fingerprints(), strict=True)
    return [f"{shard.path.name.removesuffix('.tar')}-{mark[:16]}.safetensors" for shard, mark in marks]


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the cache was made with. Raises ValueError if it is none."""
    path = folder / MANIFEST
    if not path.exists():
        raise ValueError(f"data.cache={folder}: no cache there; scripts/encode.py out={folder} writes one")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"data.cache={folder}: {path} is damaged ({error}); encode again") from None


def check(
    folder: Path, image_size: int, decoder: str, first_stage: str, encoders: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The manifest of a cache made at this size, with this decoder and first stage and, of what it has, these encoders.

    Raises ValueError naming what differs.
    """
    made = read_manifest(folder)
    asked = {"image_size": image_size, "crop": CROP, "decoder": decoder, "first_stage": first_stage}
    for name, value in asked.items():
        if made[name] != value:
            raise ValueError(f"data.cache={folder}: made with {name}={made[name]}, this run has {name}={value}")
    for name in encoders.keys() & made["encoders"].keys():
        there, here = made["encoders"][name], encoders[name]
        facts = sorted(here.keys() - {"digest"})
        differing = [f"{k} is {there.get(k)} there and {here[k]} here" for k in facts if there.get(k) != here[k]]
        if differing:
            raise ValueError(
                f"data.cache={folder}: made with another encoder for conditioner.{name}: {', '.join(differing)}"
            )
    return made


class CacheFile:
    """One shard's rows: arrays [N, ...] of latents and of these `encoders`, for images as they are and mirrored."""

    def __init__(self, path: Path, encoders: Collection[str]):
        wanted = (SIZE, CHOICES, *LATENTS, *encoders)
        try:
            with safe_open(path, "pt") as file:  # maps the file; no row is read yet
                names = [n for n in file.keys() if n.removeprefix(IMAGE).partition(".")[0] in wanted]  # noqa: SIM118
                arrays = {name: file.get_tensor(name).numpy() for name in names}
                bad = json.loads(file.metadata()[BAD])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{path} is damaged ({error}); delete it and encode again") from None
        self.bad = {int(row): tuple(reason) for row, reason in bad.items()}
        self.size = arrays.pop(SIZE)
        self.choices = arrays.pop(CHOICES, None)
        plain = {name: array for name, array in arrays.items() if not name.endswith(MIRRORED)}
        mirrored = {name: arrays.get(name + MIRRORED, array) for name, array in plain.items()}
        self.arrays = (plain, mirrored)

    def __len__(self) -> int:
        return len(self.size)


class Cache:
    """What a cache has of the samples of `shards`, by their index: latents, and the answers of these `encoders`."""

    def __init__(self, folder: Path, shards: ShardSet, encoders: Collection[str]):
        self.paths = [folder / name for name in file_names(shards)]
        self.shards = shards
        self.encoders = frozenset(encoders)
        for shard, path in zip(shards.shards, self.paths, strict=True):
            if not path.exists():
                others = list(folder.glob(f"{escape(path.name[:-29])}-*.safetensors"))
                what = "another content of" if others else "nothing of"
                raise ValueError(
                    f"data.cache={folder}: has {what} the shard {shard.path.name} (no {path.name}); "
                    f"scripts/encode.py out={folder} adds what is missing"
                )
        self._files: dict[int, CacheFile] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # another process maps its own

    def _locate(self, index: int) -> tuple[CacheFile, int]:
        number, row = self.shards.place(index)
        file = self._files.get(number)
        if file is None:
            file = self._files[number] = CacheFile(self.paths[number], self.encoders)
            if len(file) != self.shards.shards[number].num_samples:
                raise ShardError(f"{self.paths[number]} has {len(file)} rows, its shard has another number of samples")
        return file, row

    def size(self, index: int) -> tuple[int, int] | BadSample:
        """(width, height) of the resized image; a BadSample stands for one that could not be encoded."""
        file, row = self._locate(index)
        if row in file.bad:
            return BadSample(*file.bad[row])
        width, height = file.size[row].tolist()
        return width, height

    def rows(self, indices: Sequence[int], views: Sequence[View]) -> dict[str, Any]:
        """``moments`` or ``codes`` [B, ...] and ``encoded``, {encoder: {part: [B, ...]}}, in the stored precision."""
        found: dict[str, np.ndarray] = {}
        for place, (index, view) in enumerate(zip(indices, views, strict=True)):
            file, row = self._locate(index)
            text = row
            if file.choices is not None:
                first, end = file.choices[row : row + 2].tolist()
                text = first + view.choose(end - first)
            for name, array in file.arrays[view.flip].items():
                if name not in found:
                    found[name] = np.empty((len(indices), *array.shape[1:]), array.dtype)
                found[name][place] = array[row if name.startswith(OF_IMAGE) else text]
        encoded: dict[str, dict[str, torch.Tensor]] = {}
        for name in found.keys() - set(LATENTS):
            encoder, _, part = name.removeprefix(IMAGE).partition(".")
            encoded.setdefault(encoder, {})[part] = torch.from_numpy(found[name])
        latents = {name: torch.from_numpy(found[name]) for name in LATENTS if name in found}
        return {**latents, "encoded": encoded}


class CachedSamples:
    """`samples` with what `cache` has of them in their batches; their images are decoded only if `images`."""

    def __init__(self, samples: Samples, cache: Cache, images: bool):
        self.samples = samples
        self.cache = cache
        self.images = images

    def get_all(self, indices: Sequence[int]) -> list[Sample | BadSample]:
        """Samples read together; a BadSample stands for one that cannot be used."""
        sizes = [self.cache.size(index) for index in indices]
        chosen = [index for index, size in zip(indices, sizes, strict=True) if not isinstance(size, BadSample)]
        read = iter(self.samples.get_all(chosen) if self.images else self.samples.without_images(chosen))
        return [size if isinstance(size, BadSample) else next(read) for size in sizes]

    def record(self, index: int, error: BadSample) -> dict[str, Any]:
        """The row that names a skipped sample."""
        return self.samples.record(index, error)

    def batch(
        self, samples: Sequence[Sample], views: Sequence[View], numbers: Sequence[int], skipped: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """As `Samples.batch`, with the cache's rows."""
        batch = self.samples.batch(samples, views, numbers, skipped)
        return {**batch, **self.cache.rows([sample.index for sample in samples], views)}
