"""Samples of a shard set as batches: read, decode, keep in memory, crop, stack. Their order is decided elsewhere."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ldm.data.decoding import Decoder, read_picture
from ldm.data.errors import BadSample
from ldm.data.fields import Derived, Field
from ldm.data.framing import Framing
from ldm.data.image_names import IMAGE_EXTENSIONS
from ldm.data.local_copies import LocalCopies
from ldm.data.rasters import Picture
from ldm.data.shards import MemberReader, ShardSet
from ldm.data.transforms import View, to_tensor

IMAGES = frozenset(IMAGE_EXTENSIONS)


@dataclass(frozen=True)
class Sample:
    """A decoded sample before any random choice: image uint8 [H, W, 3] of the framing's short side, or left out."""

    index: int
    key: str
    image: np.ndarray | None
    fields: dict[str, Any]


class Samples:
    """Decoded samples by index; the first `memo_samples` met are kept in memory, in each process that reads.

    `derived` fields are made of the windows of a batch. `source` names the data set that a sample is from, where
    several are mixed. Without `images` no sample needs one, and their batches have none. Remote shards are read from
    `copies` once they are there.
    """

    def __init__(
        self,
        shards: ShardSet,
        framing: Framing,
        fields: Mapping[str, Field],
        memo_samples: int,
        decoder: Decoder,
        source: Callable[[int], str] | None = None,
        derived: Mapping[str, Derived] | None = None,
        images: bool = True,
        copies: LocalCopies | None = None,
    ):
        self.shards = shards
        self.framing = framing
        self.fields = dict(fields)
        self.derived = dict(derived or {})
        self.memo_samples = memo_samples
        self.decoder = decoder
        self.source = source
        self.images = images
        self._imageless = {name: field for name, field in self.fields.items() if field.extension is not None}
        self._extensions = frozenset(field.extension for field in self._imageless.values())
        self._reader = MemberReader(copies)
        self._memo: dict[int, Sample] = {}

    def get_all(self, indices: Sequence[int]) -> list[Sample | BadSample]:
        """Samples read together, which remote shards need; a BadSample stands for one that cannot be used."""
        unread = [index for index in dict.fromkeys(indices) if index not in self._memo]
        found = dict(zip(unread, self._read_all(unread, self.images), strict=True))
        for index, sample in found.items():
            if isinstance(sample, Sample) and len(self._memo) < self.memo_samples:
                self._memo[index] = sample
        return [self._memo[index] if index in self._memo else found[index] for index in indices]

    def without_images(self, indices: Sequence[int]) -> list[Sample | BadSample]:
        """Samples without what is decoded of the image file: its header is looked at, if a field asks how it lies."""
        return self._read_all(indices, images=False)

    def _read_all(self, indices: Sequence[int], images: bool) -> list[Sample | BadSample]:
        places = [self.shards.locate(index) for index in indices]
        first_of = IMAGE_EXTENSIONS if images or self._lies(self._imageless) else ()
        asked = self._extensions or first_of
        read = self._reader.read_all(places, self._extensions, first_of) if asked else [{} for _ in places]
        found: list[Sample | BadSample] = []
        for index, (shard, place), members in zip(indices, places, read, strict=True):
            try:
                if isinstance(members, BadSample):
                    raise members
                if images and not members.keys() & IMAGES:
                    raise _without_image(shard.members(place))
                found.append(self._decode(index, shard.keys[place], members, images))
            except BadSample as error:
                found.append(error)
        return found

    @staticmethod
    def _lies(fields: Mapping[str, Field]) -> bool:
        return any(field.lies_on_picture for field in fields.values())

    def _decode(self, index: int, key: str, members: Mapping[str, bytes], with_image: bool) -> Sample:
        content = next((members[name] for name in IMAGE_EXTENSIONS if name in members), None)
        fields, side = self.fields if with_image else self._imageless, self.framing.short_side
        if content is None and (with_image or self._lies(fields)):
            raise BadSample("missing member", f"no image ({', '.join(IMAGE_EXTENSIONS)})")
        image = self.decoder(content, side) if with_image else None
        picture = read_picture(content, side, self.decoder.max_pixels) if self._lies(fields) else None
        values = {name: _read(field, members, content, picture) for name, field in fields.items()}
        return Sample(index, key, image, values)

    def num_choices(self, sample: Sample) -> int:
        """The number of equally spaced view choices that reach every variant the fields have of a sample."""
        return math.lcm(*(self.fields[name].num_choices(value) for name, value in sample.fields.items()))

    def record(self, index: int, error: BadSample) -> dict[str, Any]:
        """The row that names a skipped sample."""
        shard, place = self.shards.locate(index)
        return {
            "kind": error.kind,
            "shard": shard.path.name,
            "key": shard.keys[place],
            "index": index,
            "reason": str(error)[:200],
        }

    def batch(
        self, samples: Sequence[Sample], views: Sequence[View], numbers: Sequence[int], skipped: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """image float32 [B, 3, H, W] in [-1, 1], key list[str], number and index int64 [B], skipped, and the fields.

        There is no image, nor what is made of it, where the samples came without, and source list[str] only where data
        sets are mixed.
        """
        size = self.framing.window
        batch: dict[str, Any] = {
            "key": [sample.key for sample in samples],
            "number": torch.tensor(numbers, dtype=torch.int64),
            "index": torch.tensor([sample.index for sample in samples], dtype=torch.int64),
            "skipped": skipped,
        }
        if all(sample.image is not None for sample in samples):
            pairs = zip(samples, views, strict=True)
            batch["image"] = to_tensor([view.crop(sample.image, size) for sample, view in pairs])
            batch |= {name: field.make(batch["image"], batch["number"]) for name, field in self.derived.items()}
        if self.source is not None:
            batch["source"] = [self.source(sample.index) for sample in samples]
        for name in samples[0].fields:
            batch[name] = self.fields[name].collate([sample.fields[name] for sample in samples], views, size)
        return batch


def _without_image(there: Collection[str]) -> BadSample:
    """The error for a sample that has these extensions but no image."""
    listed = ", ".join(sorted(there)[:3]) + (", ..." if len(there) > 3 else "")
    rule = "; an extension begins at a name's first dot: rename the files" if any("." in name for name in there) else ""
    return BadSample("missing member", f"no image ({', '.join(IMAGE_EXTENSIONS)}), but {listed[:90]}{rule}")


def _read(field: Field, members: Mapping[str, bytes], image: bytes | None, picture: Picture | None) -> Any:
    content = image if field.extension is None else members.get(field.extension)
    if content is None:
        raise BadSample("missing member", f"no .{field.extension}")
    return field.read(content, picture)
