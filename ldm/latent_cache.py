"""Latents and embeddings of whole shards, made once: a file for each shard, over any number of processes, resumable.

What is in a file and how it is read back: data/cache.py.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.numpy import save
from torch import Tensor

from ldm.build import Parts, window_size
from ldm.checks import check_fields
from ldm.conditioners.base import Conditioners
from ldm.conditioners.frozen import FrozenEncoder
from ldm.config import load_tree
from ldm.data.cache import (
    CHOICES,
    CODES,
    CROP,
    IMAGE,
    MANIFEST,
    MIRRORED,
    MOMENTS,
    SIZE,
    CacheFile,
    file_names,
    read_manifest,
)
from ldm.data.cache_labels import labelled
from ldm.data.encoding import Span
from ldm.data.module import ShardData
from ldm.data.samples import Samples
from ldm.data.seals import seal_of, sealed
from ldm.device import choose
from ldm.encoded_shard import Shard
from ldm.errors import UserError
from ldm.files import sweep, write_bytes, write_json
from ldm.holding import held
from ldm.training.distributed import broadcast, gather_objects, process_group, together

PRECISIONS = {"fp16": np.float16, "fp32": np.float32}


class Job(NamedTuple):
    """A shard to encode: a part of the data, the shard's number in it, and the file to be written."""

    samples: Samples
    number: int
    path: Path

    @property
    def span(self) -> Span:
        """The indices of its samples."""
        bounds = self.samples.shards.bounds
        return bounds[self.number], bounds[self.number + 1]


def encode(tree: dict[str, Any]) -> None:
    """Write what the cache of `tree` (conf/encode.yaml) lacks; under torchrun the shards are dealt to the processes."""
    if tree["data"] is None:
        raise UserError("data: has to be chosen, such as data=shards data.train=/path/to/shards/train-*.tar")
    if not tree["first_stage"]:
        _check_without_first_stage(tree)
    parts = Parts({**tree, "image_size": tree["image_size"] or _trained_size(Path(tree["first_stage"]))})
    data, out = parts["data"], Path(tree["out"])
    flips = data.augmentation.horizontal_flip_prob > 0 if tree["flips"] is None else tree["flips"]
    device = choose(tree["device"])
    first_stage = parts["first_stage"].to(device)
    encoders = _encoders(parts["conditioner"])
    encoders |= {} if parts["representation"] is None else {"representation": parts["representation"].encoder}
    check_fields(parts["conditioner"], data)
    shown = tree["first_stage"] or any(encoder.key in data.keys.of_picture for encoder in encoders.values())
    if shown and data.augmentation.random_crop:
        raise UserError("data.random_crop=true: a cache has one crop of each image; set it to false")
    if tree["codes"] and not first_stage.num_codes:
        raise UserError(f"codes=true: {tree['first_stage']} has no codes; only a first stage with regularizer=vq has")
    manifest = {
        "image_size": data.image_size,
        "crop": CROP,
        "decoder": data.decoder.name,
        "first_stage": first_stage.spec.fingerprint,
        "encoders": {name: {**e.describe(), **data.keys.own_pixels(e.key)} for name, e in encoders.items()},
        "precision": tree["precision"],
        "codes": tree["codes"],
        "flips": flips,
    }
    jobs = _jobs(data, out)
    with process_group(torch.device("cpu")) as (rank, world_size), ExitStack() as stack:  # they exchange a list only
        if (out / MANIFEST).exists():
            _refuse_another(out, manifest)
        with together():  # a refusal reaches every rank
            if rank == 0:
                stack.enter_context(held(out, "encoding into"))
                sweep(out)
                write_json(out / MANIFEST, sealed(manifest))
        missing = broadcast([name for name, job in jobs.items() if not job.path.exists()])
        mine = [jobs[name] for name in missing[rank::world_size]]
        once = list({encoder.digest: encoder for encoder in encoders.values()}.values())
        make = Rows(first_stage if tree["first_stage"] else None, once, data.keys.of_picture, manifest, device)
        _write(mine, data, make, tree["batch_size"], quiet=rank != 0)
        gather_objects(None)  # rank zero holds the folder until all have written
    if rank == 0 and all(job.path.exists() for job in jobs.values()):
        _report(out, jobs)


def _check_without_first_stage(tree: dict[str, Any]) -> None:
    """Raises ValueError if a tree without a first stage has nothing to encode, or no image size."""
    if not tree["conditioner"] and not tree["representation"]:
        raise UserError("first_stage: without one there are no latents, and without conditioner= no embeddings either")
    if tree["image_size"] is None:
        raise UserError("image_size: has to be given where no first_stage= tells it")


def _trained_size(first_stage: Path) -> int:
    run = first_stage.parent.parent if first_stage.suffix == ".safetensors" else first_stage
    if not (run / "config.yaml").exists():
        raise UserError(f"first_stage={first_stage}: no run there")
    return window_size(load_tree(run / "config.yaml"))


def _encoders(conditioner: Conditioners) -> dict[str, FrozenEncoder]:
    encoders = conditioner.encoders()
    for name in conditioner.parts.keys() - encoders.keys():
        raise UserError(f"conditioner={name}: has no frozen encoder, so nothing of it can be made beforehand")
    return encoders


def _jobs(data: ShardData, out: Path) -> dict[str, Job]:
    """File name -> what goes into it; a shard that is in two parts is encoded once."""
    data.setup()
    named = [(name, part, number) for part in data.whole_parts() for number, name in enumerate(file_names(part.shards))]
    return {name: Job(part, number, out / name) for name, part, number in named}


def _refuse_another(out: Path, manifest: dict[str, Any]) -> None:
    there = read_manifest(out)
    for key, value in manifest.items():
        if there.get(key) != value:
            raise UserError(
                f"out={out}: holds a cache made with {key}={there.get(key)}, this one is with {key}={value}; "
                "choose another folder"
            )


class Rows:
    """What a first stage, if any, and frozen encoders give for a batch of `EncodingStream`: {name: array [B, ...]}.

    B counts samples for what is made of images (data.cache.OF_IMAGE; `pictures` are the fields that they are), and the
    texts of all samples for the rest.
    """

    def __init__(
        self,
        first_stage: Any,
        encoders: Sequence[FrozenEncoder],
        pictures: Collection[str],
        made: dict[str, Any],
        device: torch.device,
    ):
        self.first_stage = first_stage
        self.of_image = [encoder for encoder in encoders if encoder.key in pictures]
        self.of_text = [encoder for encoder in encoders if encoder.key not in pictures]
        self.seal = seal_of(made)
        self.flips = made["flips"]
        self.precision = made["precision"]
        self.codes = made["codes"]
        self.device = device

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        shown = {key: batch[key].to(self.device) for key in {"image", *(encoder.key for encoder in self.of_image)}}
        rows = self._rows_of_image(shown)
        if self.flips:
            mirrored = {key: picture.flip(-1) for key, picture in shown.items()}
            rows |= {name + MIRRORED: value for name, value in self._rows_of_image(mirrored).items()}
        for encoder in self.of_text:
            given = encoder.encode(batch, self.device)
            rows |= {f"{encoder.digest}.{part}": value for part, value in given.items()}
        return {name: self._stored(name, value) for name, value in rows.items()}

    def _rows_of_image(self, shown: dict[str, Tensor]) -> dict[str, Tensor]:
        rows = {} if self.first_stage is None else self._latents(shown["image"])
        for encoder in self.of_image:
            given = encoder.encode(shown, self.device)
            rows |= {f"{IMAGE}{encoder.digest}.{part}": value for part, value in given.items()}
        return rows

    def _latents(self, image: Tensor) -> dict[str, Tensor]:
        moments = self.first_stage.moments(image)
        if not self.codes:
            return {MOMENTS: moments}
        if not moments.isfinite().all():  # VQ would map NaN to some code
            raise UserError("first_stage: its features of an image are not finite; look at its weights")
        narrow = self.first_stage.num_codes <= 1 << 15
        return {CODES: self.first_stage.regularizer.indices(moments).to(torch.int16 if narrow else torch.int32)}

    def _stored(self, name: str, value: Tensor) -> np.ndarray:
        array = value.cpu().numpy()
        if value.is_floating_point():
            array = array.astype(PRECISIONS[self.precision])
            if not np.isfinite(array).all():
                raise UserError(f"{name}: a value is not finite as {self.precision}; precision=fp32 has more room")
        return array


def _write(jobs: Sequence[Job], data: ShardData, make: Rows, batch_size: int, quiet: bool) -> None:
    """Encode the shards of `jobs` and write each as soon as it is whole."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    total = sum(end - start for start, end in (job.span for job in jobs))
    with Progress(*columns, TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(), disable=quiet) as progress:
        bar = progress.add_task("encoding", total=total)
        for part in dict.fromkeys(job.samples for job in jobs):
            own = [job for job in jobs if job.samples is part]
            batches = iter(data.encoding_loader(part, [s for job in own for s in _spans(job.span, batch_size)]))
            for job in own:
                shard = Shard(job.span)
                while not shard.complete:
                    batch = next(batches)
                    shard.add(batch, make(batch) if "image" in batch else {})
                    progress.advance(bar, batch["span"][1] - batch["span"][0])
                arrays, facts = shard.content()
                whole = labelled(arrays, facts, job.path.name, make.seal, plain=(SIZE, CHOICES))
                write_bytes(job.path, save(whole, metadata=facts))


def _spans(span: Span, size: int) -> Iterator[Span]:
    for start in range(*span, size):
        yield start, min(start + size, span[1])


def _report(out: Path, jobs: dict[str, Job]) -> None:
    count = sum(end - start for start, end in (job.span for job in jobs.values()))
    size = sum(job.path.stat().st_size for job in jobs.values())
    bad = sum(len(CacheFile(job.path, encoders=()).bad) for job in jobs.values())
    print(
        f"{out}: {count} samples of {len(jobs)} shards, {bad} of them bad, {size / 1e6:.1f} MB; "
        f"train with data.cache={out}"
    )
