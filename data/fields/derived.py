"""The interface of a derived field: computed from a batch's window of the image, not read from a member.

It holds no state: a draw is addressed by (seed, purpose, sample number), see data.counter_random, so that a resumed run
makes the same, whatever the batch, the worker and the rank.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch

from ldm.data.fields.field import Field


class Derived(ABC):
    """One key of the batch. `yields` says what the batch gets, `given` reads a file that is given for it in sampling.

    `for_training`: whether it is computed from an image in training only, while sampling has to be given a value.
    """

    yields: str
    given: Field | None = None
    for_training = False
    degrades = False  # whether it spoils pictures, so that who is trained on them knows those that are found
    reduces: int | None = None  # sides of the window over those of a picture made of it, where that ratio is fixed

    @abstractmethod
    def make(self, windows: torch.Tensor, numbers: torch.Tensor) -> Any:
        """The batch's value from windows [B, 3, H, W] in [-1, 1], which it leaves as they are, and their samples'
        numbers, int64 [B]. A sample's own depends on its own window and number alone.
        """
