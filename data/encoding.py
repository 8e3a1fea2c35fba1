"""Samples in order for encoding: whole shards, span by span; bad samples are reported with their index."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from ldm.data.errors import BadSample
from ldm.data.samples import Sample, Samples
from ldm.data.transforms import View

Span = tuple[int, int]  # from one index up to another


class EncodingStream(IterableDataset):
    """One batch for each span of indices, the largest window of each image, not mirrored.

    What does not lie on the picture, such as texts, is given once for each value that `collate` may choose of it:
    "choices" [B] says how many a sample has. "size" [B, 2] is the width and height of the resized image. A span
    without a usable sample is a batch that has nothing but its "span" and what was "skipped".
    """

    def __init__(self, samples: Samples, spans: Sequence[Span]):
        self.samples = samples
        self.spans = spans

    def __len__(self) -> int:
        return len(self.spans)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        here = get_worker_info()
        first, step = (0, 1) if here is None else (here.id, here.num_workers)
        for span in self.spans[first::step]:
            found: list[Sample] = []
            skipped: list[dict[str, Any]] = []
            for index, sample in zip(range(*span), self.samples.get_all(range(*span)), strict=True):
                if isinstance(sample, BadSample):
                    skipped.append(self.samples.record(index, sample))
                else:
                    found.append(sample)
            yield {**(self._batch(found) if found else {}), "span": span, "skipped": skipped}

    def _batch(self, found: list[Sample]) -> dict[str, Any]:
        fields = {name: field for name, field in self.samples.fields.items() if not field.lies_on_picture}
        choices = [self.samples.num_choices(sample) for sample in found]
        every = [(s, View(choice=(k + 0.5) / n)) for s, n in zip(found, choices, strict=True) for k in range(n)]
        views = [view for _, view in every]
        given = {
            name: field.collate([sample.fields[name] for sample, _ in every], views, self.samples.framing.window)
            for name, field in fields.items()
        }
        plain = self.samples.batch(found, [View()] * len(found), [sample.index for sample in found], [])
        size = np.array([sample.image.shape[1::-1] for sample in found], dtype=np.int32)
        return {**plain, "size": size, "choices": choices, **given}
