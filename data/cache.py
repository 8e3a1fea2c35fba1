"""Precomputed latents and embeddings (scripts/encode.py), read by sample in place of images; memory-mapped.

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

from ldm.data.cache_labels import LABEL, SUMS, read_label, row_sum, stranger
from ldm.data.errors import BadSample, ShardError
from ldm.data.samples import Sample, Samples
from ldm.data.seals import check_seal
from ldm.data.shards import ShardSet
from ldm.data.transforms import View
from ldm.data.user_error import UserError

MANIFEST = "cache.json"
CROP = "centre"
MIRRORED = ".mirrored"  # ends the name of what was made of the mirrored image
BAD = "bad"  # in a file's metadata: what was wrong with the samples that have no usable row
MAX_MANIFEST_BYTES = 1 << 20
# The keys of the manifest and the types of their values.
KINDS = {"image_size": int, "crop": str, "decoder": str, "first_stage": str, "encoders": dict, "precision": str,
         "codes": bool, "flips": bool}  # fmt: skip
SIZE, CHOICES = "size", "choices"  # of the resized image, [N, 2]; where each sample's texts begin, [N + 1]
MOMENTS, CODES = "moments", "codes"  # what latents are made of: numbers, or those of a VQ first stage's codes
LATENTS = (MOMENTS, CODES)
IMAGE = "image."  # begins the name of what an encoder made of the image
OF_IMAGE = (*LATENTS, IMAGE)  # how names of what has a row for each sample begin; all else has one for each text


def file_names(shards: ShardSet) -> list[str]:
    """The name of each shard's cache file, which depends on the shard's content, not on its path."""
    marks = zip(shards.shards, shards.fingerprints, strict=True)
    return [f"{shard.path.name.removesuffix('.tar')}-{mark[:16]}.safetensors" for shard, mark in marks]


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the cache was made with. Raises ValueError if there is no valid manifest."""
    path = folder / MANIFEST
    if not path.exists():
        raise UserError(f"data.cache={folder}: no cache there; scripts/encode.py out={folder} writes one")
    try:
        with path.open("rb") as file:
            made = json.loads(file.read(MAX_MANIFEST_BYTES))
        check_seal(made, path)
        for name, kind in KINDS.items():
            if not isinstance(made[name], kind):
                raise UserError(f"{name} is not {kind.__name__}")
        if not all(isinstance(facts, dict) and isinstance(facts["digest"], str) for facts in made["encoders"].values()):
            raise UserError("encoders are not described")
        return made
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        said = error.args[0] if error.args else type(error).__name__
        raise UserError(f"data.cache={folder}: {path} is damaged ({said}); encode again") from None


def check(
    folder: Path,
    made: Mapping[str, Any],
    image_size: int,
    decoder: str,
    first_stage: str,
    encoders: Mapping[str, Mapping[str, Any]],
) -> None:
    """Check what a cache was `made` with against this size, decoder, first stage and, where cached, these encoders.

    Raises ValueError naming what differs.
    """
    asked = {"image_size": image_size, "crop": CROP, "decoder": decoder, "first_stage": first_stage}
    for name, value in asked.items():
        if made[name] != value:
            raise UserError(f"data.cache={folder}: made with {name}={made[name]}, this run has {name}={value}")
    for name in encoders.keys() & made["encoders"].keys():
        there, here = made["encoders"][name], encoders[name]
        facts = sorted((here.keys() | {"pixels"}) - {"digest"})
        pairs = {key: (there.get(key), here.get(key)) for key in facts}
        differing = [f"{key} is {one} there and {other} here" for key, (one, other) in pairs.items() if one != other]
        if differing:
            raise UserError(
                f"data.cache={folder}: made with another encoder for conditioner.{name}: {', '.join(differing)}"
            )


class CacheFile:
    """One shard's rows: arrays [N, ...] of latents and of these `encoders`, for images as they are and mirrored.

    `seal` is that of the cache that the file should belong to. Raises ShardError if it does not, or is damaged.
    """

    def __init__(self, path: Path, encoders: Collection[str], seal: str | None = None):
        self.path = path
        wanted = (SIZE, CHOICES, *LATENTS, *encoders)
        try:
            with safe_open(path, "pt") as file:  # maps the file; no row is read yet
                there = file.keys()
                names = [name for name in there if name.removeprefix(IMAGE).partition(".")[0] in wanted]
                arrays = {name: file.get_tensor(name).numpy() for name in names}
                self._sums = {n: file.get_tensor(SUMS + n).numpy() for n in names if SUMS + n in there}
                label = read_label(file.get_tensor(LABEL).numpy() if LABEL in there else None)
                bad = json.loads(file.metadata()[BAD])
            self.bad = {int(row): (str(kind), str(reason)) for row, (kind, reason) in bad.items()}
            self.size = arrays.pop(SIZE)
            self.choices = arrays.pop(CHOICES, None)
            self._check_shapes(arrays)
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ShardError(f"{path} is damaged ({error}); delete it and encode again") from None
        problem = stranger(label, path.name, seal)
        if problem:
            raise ShardError(f"{path}: {problem}; delete it and encode again")
        plain = {name: array for name, array in arrays.items() if not name.endswith(MIRRORED)}
        mirrored = {name: arrays.get(name + MIRRORED, array) for name, array in plain.items()}
        self.arrays = (plain, mirrored)
        self._names = [{n: n + MIRRORED if flip and n + MIRRORED in arrays else n for n in plain} for flip in (0, 1)]

    def __len__(self) -> int:
        return len(self.size)

    def row(self, name: str, number: int, flip: bool) -> np.ndarray:
        """A row of the array of this name. Raises ShardError if it does not match its checksum."""
        row = self.arrays[flip][name][number]
        sums = self._sums.get(self._names[flip][name])
        if sums is not None and row_sum(row, number) != sums[number]:
            raise ShardError(
                f"{self.path}: row {number} of {name} is not as it was written; delete it and encode again"
            )
        return row

    def _check_shapes(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError unless everything has as many rows as samples or texts."""
        if self.size.ndim != 2 or self.size.shape[1] != 2 or self.size.dtype.kind != "i":
            raise UserError(f"{SIZE} has the shape {self.size.shape}")
        num_texts = len(self.size)
        if self.choices is not None:
            steps = np.diff(self.choices)
            if self.choices.shape != (num_texts + 1,) or self.choices.dtype.kind != "i" or (steps < 0).any():
                raise UserError(f"{CHOICES} does not say where texts begin")
            num_texts = int(self.choices[-1])
        for name, array in arrays.items():
            expected = (len(self.size) if name.startswith(OF_IMAGE) else num_texts,)
            if array.shape[:1] != expected or self._sums.get(name, array).shape[:1] != expected:
                raise UserError(f"{name} has {array.shape[:1]} rows, there are {expected}")


class Cache:
    """What a cache holds for the samples of `shards`, by their index: latents, and the outputs of these `encoders`.

    `seal` is that of its manifest; None for a manifest that is older than seals.
    """

    def __init__(self, folder: Path, shards: ShardSet, encoders: Collection[str], seal: str | None):
        self.paths = [folder / name for name in file_names(shards)]
        self._seal = seal
        self.shards = shards
        self.encoders = frozenset(encoders)
        for shard, path in zip(shards.shards, self.paths, strict=True):
            if not path.exists():
                others = list(folder.glob(f"{escape(path.name[:-29])}-*.safetensors"))
                what = "another content of" if others else "nothing of"
                raise UserError(
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
            file = self._files[number] = CacheFile(self.paths[number], self.encoders, self._seal)
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

    def check_texts(self, sample: Sample, num_choices: int) -> None:
        """Raises ShardError unless it has as many texts of the sample as there are to choose from."""
        file, row = self._locate(sample.index)
        if all(name.startswith(OF_IMAGE) for name in file.arrays[0]):
            return
        kept = 1 if file.choices is None else int(file.choices[row + 1] - file.choices[row])
        if kept != num_choices:
            raise ShardError(
                f"data.cache has embeddings of {kept} captions of {sample.key}, data.fields makes {num_choices}: "
                "encode again with these data.fields, or use those it was made with"
            )

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
                found[name][place] = file.row(name, row if name.startswith(OF_IMAGE) else text, view.flip)
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
        self.framing = samples.framing
        self.cache = cache
        self.images = images and samples.images

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
        if "caption" in self.samples.fields:
            for sample in samples:
                self.cache.check_texts(sample, self.samples.num_choices(sample))
        batch = self.samples.batch(samples, views, numbers, skipped)
        return {**batch, **self.cache.rows([sample.index for sample in samples], views)}
