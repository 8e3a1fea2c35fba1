"""The interface of a field: it reads a member of the shard, and becomes one key of the batch.

A field has two halves: `read` decodes (the result may be kept in memory), `collate` applies the views and stacks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from ldm.data.rasters import Picture
from ldm.data.transforms import View


class Field(ABC):
    """One key of the batch. `extension` is the member it needs, None the sample's image file; `yields` says what the
    batch gets.

    `lies_on_picture` says that reading it needs to know how its picture lies; the others are given no Picture. `given`
    reads a file that is given for it in sampling, None: it does so itself. `numbers`: of token numbers, how many there
    are of a sample, and how many values each may have.
    """

    extension: str | None
    yields: str
    lies_on_picture = False
    given: "Field | None" = None
    numbers: tuple[int, int] | None = None
    size: int | None = None  # px, of pixels that have another size than the image
    reduces: int | None = None  # sides of the image over those of the pixels it reads, where they lie on the image's

    @abstractmethod
    def read(self, content: bytes, picture: Picture | None) -> Any:
        """Decode the member, turned and resized with its picture. BadSample if it cannot be used."""

    def unmeant(self, value: Any) -> str | None:
        """What is wrong with a value that training puts up with, and that nobody means who gives it in sampling."""
        return None

    def drawing(self, value: Any, names: Sequence[str]) -> Callable[[Image.Image], Image.Image] | None:
        """What draws a value over an RGB image of any size, by the `names` of its classes; None: nothing to be seen."""
        return None

    @abstractmethod
    def collate(self, values: Sequence[Any], views: Sequence[View], image_size: int) -> Any:
        """The batch's value from the samples' own."""

    def num_choices(self, value: Any) -> int:
        """How many different values `collate` makes of this one, by the view's choice."""
        return 1
