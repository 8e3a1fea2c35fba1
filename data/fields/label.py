"""Class numbers."""

from collections.abc import Sequence

import torch

from ldm.data.errors import BadSample
from ldm.data.fields.field import Field
from ldm.data.members import read_entry, read_text
from ldm.data.rasters import Picture
from ldm.data.transforms import View


class Label(Field):
    """A class number, int64 [B]: a key of the .json member, or a whole member (`extension=cls`, `key=null`)."""

    yields = "int64 [B]"

    def __init__(self, key: str | None = "label", extension: str = "json"):
        self.key = key
        self.extension = extension

    def read(self, content: bytes, picture: Picture | None) -> int:
        """A non-negative integer."""
        value = read_entry(content, self.key, "missing label") if self.key is not None else read_text(content).strip()
        if self.key is None and value.isascii() and value.isdigit() and len(value) <= 10:
            value = int(value)
        if type(value) is not int or not 0 <= value < 1 << 31:
            raise BadSample("missing label", f"{str(value)[:40]!r} is not a class number")
        return value

    def collate(self, values: Sequence[int], views: Sequence[View], image_size: int) -> torch.Tensor:
        """Stacked; views do not change a class."""
        return torch.tensor(values, dtype=torch.int64)
