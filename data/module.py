"""ShardData: the LightningDataModule that turns shards into batches under a plan; the one place in `data` that knows
Lightning. A batch is described at `Samples.batch`; its order needs no saved state, only `start(number)`.
"""

import os
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl

from ldm.data.batches import Batches
from ldm.data.cache import Cache, CachedSamples, check, read_manifest
from ldm.data.decoding import DECODERS
from ldm.data.encoding import EncodingStream, Span
from ldm.data.errors import BadSample, SkipLog, printable
from ldm.data.fields import Derived, Field
from ldm.data.fields.field_set import FieldSet
from ldm.data.filters import FilterRules, read_filters
from ldm.data.framing import CropSize, framing
from ldm.data.local_copies import LocalCopies
from ldm.data.objects import Location
from ldm.data.paths import expand
from ldm.data.plan import BatchPlan, permute
from ldm.data.samples import Samples
from ldm.data.seals import SEAL
from ldm.data.shards import ShardSet
from ldm.data.streams import PassStream, TrainStream
from ldm.data.training_set import Source, TrainingSet, read_mixture
from ldm.data.transforms import Augmentation
from ldm.data.user_error import UserError
from ldm.data.workers import check_shared_memory

# Keys that a batch has whatever its fields are.
RESERVED = ("image", "key", "number", "index", "skipped", "source", "moments", "codes", "encoded")


class ShardData(pl.LightningDataModule):
    """WebDataset shards as training, validation and statistics batches.

    `batch_size` counts the samples of one optimizer step over all ranks and `accumulation` micro-batches. `fields` maps
    keys of the batch to what reads them, `derived` to what makes them of the image. `crop_size`: see data.framing.
    `train` and `validation` are paths with braces or globs, or lists of them.
    `max_samples` and `validation_samples` keep the first so many. `mixture` takes the place of `train`: NAME: {shards,
    weight}, mixed in that proportion, each set in epochs of its own. `filters` (see Filters) choose training samples.
    `shuffle_block` keeps the order local (see Plan). `decoder=fast` needs an extra and gives other last bits. `cache`
    is a folder of scripts/encode.py, used once `read_cache` has held it against the run. Remote shards are copied to
    `cache_dir`, at most `cache_dir_gb` 10^9 bytes of them, while they are read (see data.local_copies).
    `with_images=false`: the samples have none, only fields. More than ten arguments: each is a key of the YAML.
    """

    def __init__(
        self,
        train: str | Sequence[str] | None,
        image_size: int,
        batch_size: int,
        validation: str | Sequence[str] | None = None,
        fields: Mapping[str, Field] | None = None,
        accumulation: int = 1,
        seed: int = 0,
        num_workers: int = 0,
        horizontal_flip_prob: float = 0.0,
        random_crop: bool = False,
        max_bad_fraction: float = 0.01,
        max_samples: int | None = None,
        validation_samples: int | None = None,
        memo_samples: int = 0,
        cache: str | None = None,
        timeout_seconds: float = 600.0,
        shuffle_block: int | None = None,
        mixture: Mapping[str, Source] | None = None,
        filters: FilterRules | None = None,
        decoder: Literal["pil", "fast"] = "pil",
        crop_size: CropSize = None,
        derived: Mapping[str, Field | Derived] | None = None,
        with_images: bool = True,
        cache_dir: str | None = None,
        cache_dir_gb: float = 100.0,
    ):
        super().__init__()
        for name, value in {"image_size": image_size, "batch_size": batch_size, "accumulation": accumulation}.items():
            if value < 1:
                raise UserError(f"data.{name}={value} must be at least 1")
        if not 0 <= horizontal_flip_prob <= 1:
            raise UserError(f"data.horizontal_flip_prob={horizontal_flip_prob} is not a probability")
        if not 0 <= max_bad_fraction <= 1:
            raise UserError(f"data.max_bad_fraction={max_bad_fraction} is not between 0 and 1")
        if timeout_seconds <= 0:
            raise UserError(f"data.timeout_seconds={timeout_seconds} must be positive")
        for name, value in {"shuffle_block": shuffle_block, "max_samples": max_samples}.items():
            if value is not None and value < 1:
                raise UserError(f"data.{name}={value} must be at least 1, or null")
        if (train is None) != bool(mixture):
            raise UserError("data.train=null goes with data.mixture, which then names the shards, and only with it")
        if mixture and max_samples is not None:
            raise UserError(
                "data.max_samples: keeps the first samples of data.train; in data.mixture name fewer shards"
            )
        self.training_set = TrainingSet(train, read_mixture(mixture), read_filters(filters), num_workers)
        self.validation = validation
        self.image_size = image_size
        self.framing = framing(image_size, crop_size)
        self.batch_size = batch_size
        self.keys = FieldSet(fields or {}, derived or {}, RESERVED)
        self.fields = self.keys.read
        if not with_images and self.keys.of_image != {"image"}:
            made = min(self.keys.of_image - {"image"})
            raise UserError(f"data.with_images=false: {made!r} is made of images; leave it out, or read them")
        self.accumulation = accumulation
        self.seed = seed
        self.num_workers = num_workers
        self.augmentation = Augmentation(seed, horizontal_flip_prob, random_crop, self.framing.shares)
        self.max_bad_fraction = max_bad_fraction
        self.max_samples = max_samples
        self.validation_samples = validation_samples
        self.memo_samples = memo_samples
        self.cache = cache
        self.timeout_seconds = timeout_seconds
        self.shuffle_block = shuffle_block
        self.decoder = DECODERS[decoder]()
        self.start_number = 0
        self.with_images = with_images
        self.images = False  # whether batches need them where the cache is read
        self._caches: dict[Samples, Cache] = {}
        self._copies = LocalCopies(cache_dir, cache_dir_gb) if cache_dir else None
        self._copying: subprocess.Popen | None = None

    # -- what there is -------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Read the shards' headers now, so that a missing or cut shard stops the run before it starts."""
        self.parts()

    def locations(self) -> list[Location]:
        """The paths and URLs of all shards, unopened. Raises ShardError for one that is named but does not exist."""
        held_out = [] if self.validation is None else expand(self.validation, "data.validation")
        return [*self.training_set.locations, *held_out]

    def parts(self) -> list[Samples]:
        """The training samples, and the validation samples if there are any."""
        return [self._train_samples] if self.validation is None else [self._train_samples, self._validation_samples]

    def whole_parts(self) -> list[Samples]:
        """As `parts`, with all samples of their shards, including those that `filters` remove."""
        return [self._samples(ShardSet(part.shards.shards)) for part in self.parts()]

    def over(self, shards: str | Sequence[str], key: str) -> "ShardData":
        """A copy that reads other shards: all of their samples for training, none held out, no cache.

        `key` is what of the command line or of the run names them, for errors.
        """
        other = self._copied()
        other.training_set = TrainingSet(shards, {}, read_filters(None), self.num_workers, key)
        other.validation = other.cache = other.max_samples = other.validation_samples = None
        return other

    def with_fields(self, made: Mapping[str, Field | Derived]) -> "ShardData":
        """A copy whose batches have `made` in the place of the fields of their names, and no cache."""
        other = self._copied()
        other.keys = self.keys.replaced(made)
        other.fields = other.keys.read
        other.cache = None
        return other

    def whole(self) -> "ShardData":
        """A copy whose batches show the largest window of each picture at `image_size`, whatever the crops of the
        training are, and no cache.
        """
        other = self._copied()
        other.framing = framing(self.image_size, None)
        other.cache = None
        return other

    def _copied(self) -> "ShardData":
        other = copy(self)
        for name in ("_train_samples", "_validation_samples", "_train_skips", "_validation_skips"):
            other.__dict__.pop(name, None)
        other._caches = {}
        return other

    def _samples(self, shards: ShardSet, source: Callable[[int], str] | None = None) -> Samples:
        return Samples(
            shards, self.framing, self.fields, self.memo_samples, self.decoder, source, self.keys.derived,
            self.with_images, self._copies,
        )  # fmt: skip

    @cached_property
    def _train_samples(self) -> Samples:
        source = self.training_set.source if self.training_set.mixture else None
        return self._samples(self.training_set.shards, source)

    @cached_property
    def _validation_samples(self) -> Samples:
        if self.validation is None:
            raise UserError("data.validation names no shards; give some, or switch validation off")
        return self._samples(ShardSet.open(expand(self.validation, "data.validation")))

    @cached_property
    def cache_made(self) -> dict[str, Any]:
        """What `cache` was made with. Raises ValueError if there is none."""
        return read_manifest(Path(self.cache).expanduser())

    def read_cache(
        self, first_stage: str, encoders: Mapping[str, Mapping[str, Any]], images: Collection[str]
    ) -> list[str]:
        """Take latents and embeddings from `cache` from now on; training batches have images if it leaves any need.

        `first_stage`, and `encoders` by their conditioners, say what the run would encode with; `images` are the
        conditioners that read what is made of images, and "first_stage" where the cache has no latents. Raises
        ValueError naming what differs in what the cache was made with. Returns the conditioners whose encoders it has
        nothing of.
        """
        folder, made = Path(self.cache).expanduser(), self.cache_made
        check(folder, made, self.image_size, self.decoder.name, first_stage, encoders)
        known = [(encoder["digest"], encoder.get("pixels")) for encoder in made["encoders"].values()]
        asked = [(encoder["digest"], encoder.get("pixels")) for encoder in encoders.values()]
        wanted = {digest for digest, pixels in asked if (digest, pixels) in known}
        answered = {name for name, encoder in encoders.items() if encoder["digest"] in wanted}
        if "first_stage" not in images or answered.intersection(images):
            self._check_windows(made["flips"])
        self._caches = {part: Cache(folder, part.shards, wanted, made.get(SEAL)) for part in self.parts()}
        self.images = not answered.issuperset(images)
        return [name for name in encoders if name not in answered]

    def _check_windows(self, mirrored: bool) -> None:
        """Raises ValueError if batches need windows that the cache lacks; `mirrored`: it has mirrored images too."""
        if self.framing != framing(self.image_size, None):
            raise UserError("crop_size: data.cache has all of each image's short side; leave one of them out")
        if self.augmentation.random_crop:
            raise UserError("data.random_crop=true: data.cache has one crop of each image; switch one of them off")
        flip_prob = self.augmentation.horizontal_flip_prob
        if flip_prob > 0 and not mirrored:
            raise UserError(
                f"data.horizontal_flip_prob={flip_prob}: data.cache={self.cache} has no mirrored "
                "latents; set it to 0, or encode again with flips=true"
            )

    def _with_cache(self, samples: Samples, images: bool) -> Samples | CachedSamples:
        """These samples with what the cache has of them, if it is read; images only if asked for, or always needed."""
        cache = self._caches.get(samples)
        return samples if cache is None else CachedSamples(samples, cache, images or self.images)

    def encoding_loader(self, samples: Samples, spans: Sequence[Span]) -> Batches:
        """Samples for encoding, in order: see `EncodingStream`."""
        skips = SkipLog(len(samples.shards), self.max_bad_fraction)
        return Batches(EncodingStream(samples, spans), self.num_workers, skips, self.timeout_seconds)

    @property
    def num_train(self) -> int:
        """Samples in one epoch."""
        total = len(self._train_samples.shards)
        return total if self.max_samples is None else min(total, self.max_samples)

    @property
    def removed(self) -> dict[str, int]:
        """How many training samples each of `filters` removed."""
        return self.training_set.removed

    @property
    def num_validation(self) -> int:
        """Samples in one validation pass; 0 without validation shards."""
        if self.validation is None:
            return 0
        total = len(self._validation_samples.shards)
        return total if self.validation_samples is None else min(total, self.validation_samples)

    @property
    def augments(self) -> bool:
        """Whether a training image may look different each time it comes: nothing made from it can then be kept."""
        return self.augmentation.changes_images

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the content of all shards."""
        return sha256("\n".join(part.shards.fingerprint() for part in self.parts()).encode()).hexdigest()

    @property
    def batch_spec(self) -> dict[str, str]:
        """What a batch holds, by key, in words."""
        size = self.framing.window
        image = {"image": f"float32 [B, 3, {size}, {size}]"} if self.with_images else {}
        own = {**image, "key": "list[str]", "number": "int64 [B]"}
        if self.training_set.mixture:
            own["source"] = "list[str], in training"
        return {**own, "index": "int64 [B]", **self.keys.yields}

    @cached_property
    def _train_skips(self) -> SkipLog:
        return SkipLog(self.num_train, self.max_bad_fraction)

    @cached_property
    def _validation_skips(self) -> SkipLog:
        return SkipLog(self.num_validation, self.max_bad_fraction)

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """The distinct bad samples that this process has met: kind, shard, key, index, reason."""
        return self.skipped_in_training + self.skipped_in_validation

    @property
    def skipped_in_training(self) -> list[dict[str, Any]]:
        """Those of the training samples."""
        return self._train_skips.records

    @property
    def skipped_in_validation(self) -> list[dict[str, Any]]:
        """Those of the validation samples."""
        return [] if self.validation is None else self._validation_skips.records

    @property
    def chooses(self) -> bool:
        """Whether only some of the shards' samples are trained on, or those of several sets."""
        return bool(self.training_set.filters.names or self.training_set.mixture or self.max_samples)

    def place(self, index: int, held_out: bool = False) -> str:
        """Where a sample of the training or the validation set lies: the shard's name and its key."""
        samples = self._validation_samples if held_out else self._train_samples
        shard, number = samples.shards.locate(index)
        return printable(f"{shard.path.name} {shard.keys[number]}")

    def peek(self, name: str, num_samples: int) -> list[tuple[str, Any]]:
        """Place and value of the field `name` of so many training samples, evenly spread; bad ones are left out."""
        chosen = np.unique(np.linspace(0, self.num_train - 1, min(num_samples, self.num_train)).astype(int)).tolist()
        only = Samples(self._train_samples.shards, self.framing, {name: self.fields[name]}, 0, self.decoder)
        found = only.without_images(chosen)
        return [(self.place(s.index), s.fields[name]) for s in found if not isinstance(s, BadSample)]

    # -- what is read --------------------------------------------------------------------------------------------

    def start(self, number: int) -> None:
        """Let the next training loader begin with sample `number` of the run; nothing before it is read."""
        self.start_number = number

    def train_dataloader(self) -> Batches:
        """Endless micro-batches for the attached trainer's rank (or for a single process)."""
        rank, world_size = self._place()
        return self.train_loader(self.start_number, rank, world_size)

    def train_loader(self, start: int = 0, rank: int = 0, world_size: int = 1) -> Batches:
        """Endless micro-batches of one rank from sample number `start` on."""
        plan = self.training_set.order(self.num_train, self.seed, self.shuffle_block)
        share = BatchPlan(self.batch_size, rank, world_size, self.accumulation, start)
        samples = self._with_cache(self._train_samples, images=False)
        stream = TrainStream(samples, plan, share, self.augmentation, self.max_bad_fraction)
        self._check_shared_memory(samples, self.batch_size // (world_size * self.accumulation))
        self._begin_copying()
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return Batches(stream, self.num_workers, self._train_skips, self.timeout_seconds, pinned=on_gpu)

    def validation_loader(
        self,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int | None = None,
        num_samples: int | None = None,
        images: bool = True,
    ) -> Batches:
        """Each validation sample (or the first `num_samples`) once over all ranks; ranks may differ by one sample.

        `batch_size` is the rank's own; by default that of its micro-batches in training. Without `images` they are left
        out where a cache stands for them.
        """
        count = self.num_validation if num_samples is None else min(num_samples, self.num_validation)
        samples = self._with_cache(self._validation_samples, images)
        return self._pass(samples, range(rank, count, world_size), batch_size, world_size, self._validation_skips)

    def validation_batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """The validation samples of these indices, as one batch in their order."""
        chosen = np.asarray(indices)
        return next(iter(self._pass(self._validation_samples, chosen, len(chosen), 1, self._validation_skips)))

    def statistics_loader(
        self,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int | None = None,
        num_samples: int | None = None,
        cached: bool = False,
    ) -> Batches:
        """Each training sample once over all ranks, unaugmented, in a fixed random order (of which the first
        `num_samples` are a fair sample). `cached`: beside the images with what a cache has of them.
        """
        count = self.num_train if num_samples is None else min(num_samples, self.num_train)
        places, order = range(rank, count, world_size), partial(permute, num=self.num_train, key="statistics")
        samples = self._with_cache(self._train_samples, images=True) if cached else self._train_samples
        return self._pass(samples, places, batch_size, world_size, self._train_skips, order)

    def statistics_batch(self, places: Sequence[int]) -> dict[str, Any]:
        """The training samples at these places of the order of `statistics_loader`, as one batch."""
        indices = permute(np.asarray(places), self.num_train, "statistics")
        return next(iter(self._pass(self._train_samples, indices, len(indices), 1, self._train_skips)))

    def _pass(
        self,
        samples: Samples | CachedSamples,
        places: range | np.ndarray,
        batch_size: int | None,
        world_size: int,
        skips: SkipLog,
        order: Callable[[np.ndarray], np.ndarray] = np.asarray,
    ) -> Batches:
        if batch_size is None:
            batch_size = max(1, self.batch_size // (world_size * self.accumulation))
        self._check_shared_memory(samples, min(batch_size, len(places)))
        return Batches(PassStream(samples, places, batch_size, order), self.num_workers, skips, self.timeout_seconds)

    def check_room(self, world_size: int, processes: int) -> None:
        """Raises WorkerError if training batches will not fit into shared memory, which `processes` have together."""
        samples = self._with_cache(self._train_samples, images=False)
        self._check_shared_memory(samples, self.batch_size // (world_size * self.accumulation), processes)

    def _check_shared_memory(
        self, samples: Samples | CachedSamples, batch_size: int, processes: int | None = None
    ) -> None:
        """Raises WorkerError if workers lack the room for their images, float32; the rest of a batch is small."""
        if processes is None:
            processes = 1 if self.trainer is None else self.trainer.num_devices
        if samples.images:
            check_shared_memory(batch_size * 3 * self.framing.window**2 * 4, self.num_workers, processes)

    def _begin_copying(self) -> None:
        """Copy remote shards to `cache_dir` from now on: one process of each node."""
        first = all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "SLURM_LOCALID"))
        if self._copies and first and self._copying is None:
            shards = [part.shards for part in self.parts()]
            entries = [entry for own in shards for entry in own.shards]
            self._copying = self._copies.begin(entries, [known for own in shards for known in own.listed()])

    def teardown(self, stage: str | None = None) -> None:
        """End what runs beside the training."""
        if self._copying is not None:
            self._copying.communicate()
            self._copying = None

    def _place(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
