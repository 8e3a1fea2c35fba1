"""The file of one shard of a latent cache as it is made; what is in it: data/cache.py."""

import json
from typing import Any

import numpy as np

from ldm.data.cache import BAD, CHOICES, OF_IMAGE, SIZE
from ldm.data.encoding import Span


class Shard:
    """The rows of one shard as they come, in the order of its samples."""

    def __init__(self, span: Span):
        self.start, self.end = span
        self.complete = False
        self._size = np.zeros((self.end - self.start, 2), np.int32)
        self._counts = np.zeros(self.end - self.start, np.int64)  # texts of each sample
        self._bad: dict[int, tuple[str, str]] = {}
        self._places: list[int] = []
        self._rows: list[dict[str, np.ndarray]] = []

    def add(self, batch: dict[str, Any], rows: dict[str, np.ndarray]) -> None:
        """Take the next batch and what was made of it."""
        self._bad |= {row["index"] - self.start: (row["kind"], row["reason"]) for row in batch["skipped"]}
        self.complete = batch["span"][1] == self.end
        if rows:
            places = [index - self.start for index in batch["index"].tolist()]
            self._size[places] = batch["size"]
            self._counts[places] = batch["choices"]
            self._places += places
            self._rows.append(rows)

    def content(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Arrays and metadata of the shard's file.

        What is made of images has a row for each sample, what is made of texts one for each choice.
        """
        arrays = {SIZE: self._size}
        for name in self._rows[0] if self._rows else ():
            values = np.concatenate([rows[name] for rows in self._rows])
            if name.startswith(OF_IMAGE):
                arrays[name] = np.zeros((len(self._size), *values.shape[1:]), values.dtype)
                arrays[name][self._places] = values
            else:
                arrays[name] = values
        if (self._counts != 1).any() and any(not name.startswith((SIZE, *OF_IMAGE)) for name in arrays):
            arrays[CHOICES] = np.concatenate([[0], self._counts.cumsum()])
        return arrays, {BAD: json.dumps(self._bad)}
