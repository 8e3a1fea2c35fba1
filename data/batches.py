"""Batches of a stream of samples, made in this process or in worker processes, any of which may fail."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader

from ldm.data.encoding import EncodingStream
from ldm.data.errors import SkipLog
from ldm.data.streams import PassStream, TrainStream
from ldm.data.workers import Alarm, leave_signals_to_parent, sigterm_held


class Batches:
    """Batches of a stream, made here or in worker processes; what they skipped is counted as they arrive.

    `pinned`: in memory that a GPU copies from by itself, while it computes and nothing waits.
    """

    def __init__(
        self,
        stream: TrainStream | PassStream | EncodingStream,
        num_workers: int,
        skips: SkipLog,
        timeout_seconds: float,
        pinned: bool = False,
    ):
        # a generator of its own: a loader that starts would otherwise advance torch's global one
        generator = torch.Generator()
        self.loader = DataLoader(
            stream, batch_size=None, num_workers=num_workers, collate_fn=_as_it_is, generator=generator,
            worker_init_fn=leave_signals_to_parent, pin_memory=pinned,
        )  # fmt: skip
        self.timeout_seconds = timeout_seconds
        self.skips = skips

    def __len__(self) -> int:
        """Number of batches of a pass; TypeError for an endless stream, as torch's loaders do."""
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._from_workers() if self.loader.num_workers else self.loader:
            self.skips.add(batch["skipped"])
            if len(batch) > 1:  # else the stream only reports what it skipped before it raises
                yield batch

    def _from_workers(self) -> Iterator[dict[str, Any]]:
        """The loader's batches, with a timeout of `timeout_seconds` for each."""
        with sigterm_held():
            alarm, batches = Alarm(self.timeout_seconds), iter(self.loader)
        try:
            for number in count():
                with alarm.waiting_for(number % self.loader.num_workers):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch
        finally:
            alarm.switch_off()


def _as_it_is(batch: Any) -> Any:
    """No collation: the stream's items are batches of tensors already."""
    return batch
