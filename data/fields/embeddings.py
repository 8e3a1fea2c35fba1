"""Precomputed embeddings."""

from collections.abc import Sequence

import numpy as np
import torch

from ldm.data.errors import BadSample
from ldm.data.fields.field import Field
from ldm.data.members import read_floats
from ldm.data.rasters import Picture
from ldm.data.transforms import View
from ldm.data.user_error import UserError


class Embeddings(Field):
    """Precomputed tokens, float32 [B, N, D], from an .npy member [num_tokens, D]; fewer are filled up with zeros."""

    yields = "float32 [B, N, D]"

    def __init__(self, num_tokens: int, extension: str = "npy"):
        self.num_tokens = num_tokens
        self.extension = extension

    def read(self, content: bytes, picture: Picture | None) -> np.ndarray:
        """float32 [num_tokens, D]."""
        array = read_floats(content)
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise BadSample("broken array", "not finite, or too large for 32 bits")
        if len(array) > self.num_tokens:
            raise BadSample("broken array", f"{len(array)} tokens, at most {self.num_tokens} are taken")
        return np.pad(array, ((0, self.num_tokens - len(array)), (0, 0)))

    def collate(self, values: Sequence[np.ndarray], views: Sequence[View], image_size: int) -> torch.Tensor:
        """Stacked; views do not change an embedding."""
        widths = sorted({value.shape[1] for value in values})
        if len(widths) > 1:
            raise UserError(f"embeddings (.{self.extension}) of different widths in one data set: {widths}")
        return torch.from_numpy(np.stack(values))
