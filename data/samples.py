"""Samples of a shard set as batches: read, decode, remember, crop, stack. Says nothing about order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data.decoding import IMAGE_EXTENSIONS, Decoder
from data.errors import BadSample
from data.fields import Field
from data.shards import MemberReader, ShardSet
from data.transforms import View, to_tensor


@dataclass(frozen=True)
class Sample:
    """A decoded sample before any random choice: image uint8 [H, W, 3], shortest side `image_size`."""

    index: int
    key: str
    image: np.ndarray
    fields: dict[str, Any]


class Samples:
    """Decoded samples by index; the first `memo_samples` met are kept in memory, in each process that reads."""

    def __init__(
        self,
        shards: ShardSet,
        image_size: int,
        fields: Mapping[str, Field],
        memo_samples: int,
        decoder: Decoder,
    ):
        self.shards = shards
        self.image_size = image_size
        self.fields = dict(fields)
        self.memo_samples = memo_samples
        self.decoder = decoder
        self._wanted = frozenset([*IMAGE_EXTENSIONS, *(field.extension for field in self.fields.values())])
        self._reader = MemberReader()
        self._memo: dict[int, Sample] = {}

    def get(self, index: int) -> Sample:
        """Raises BadSample when it cannot be used."""
        known = self._memo.get(index)
        if known is not None:
            return known
        shard, place = self.shards.locate(index)
        members = self._reader.read(shard, place, self._wanted)
        content = next((members[name] for name in IMAGE_EXTENSIONS if name in members), None)
        if content is None:
            raise BadSample("missing member", f"no image ({', '.join(IMAGE_EXTENSIONS)})")
        image = self.decoder(content, self.image_size)
        size = image.shape[1], image.shape[0]
        values = {name: _read(field, members, size) for name, field in self.fields.items()}
        sample = Sample(index, shard.keys[place], image, values)
        if len(self._memo) < self.memo_samples:
            self._memo[index] = sample
        return sample

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
        """image float32 [B, 3, H, W] in [-1, 1], key list[str], number and index int64 [B], skipped, and the fields."""
        pairs = list(zip(samples, views, strict=True))
        batch: dict[str, Any] = {
            "image": to_tensor([view.crop(sample.image, self.image_size) for sample, view in pairs]),
            "key": [sample.key for sample in samples],
            "number": torch.tensor(numbers, dtype=torch.int64),
            "index": torch.tensor([sample.index for sample in samples], dtype=torch.int64),
            "skipped": skipped,
        }
        for name, field in self.fields.items():
            batch[name] = field.collate([sample.fields[name] for sample in samples], views, self.image_size)
        return batch


def _read(field: Field, members: Mapping[str, bytes], size: tuple[int, int]) -> Any:
    content = members.get(field.extension)
    if content is None:
        raise BadSample("missing member", f"no .{field.extension}")
    return field.read(content, size)
