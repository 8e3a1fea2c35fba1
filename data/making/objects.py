"""Which objects and images a set of boxes is made of: the smallest area, and how many objects an image may have.

LDM's recipe for OpenImages (arXiv 2112.10752, D.3): areas of at least 1e-4 of the image, 2 to 30 objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Box = Sequence[float]  # left, top, right, bottom in shares of the image


@dataclass
class ObjectRules:
    """What is kept; what is not is counted, to be told in notes."""

    min_area: float = 0.0
    min_objects: int = 0
    max_objects: int = 0  # 0 for any number
    small: int = 0
    _others: list[str] = field(default_factory=list)

    def large_enough(self, box: Box) -> bool:
        """Whether a box's share of the image is at least the smallest."""
        kept = (box[2] - box[0]) * (box[3] - box[1]) >= self.min_area
        self.small += not kept
        return kept

    def takes(self, name: str, objects: Sequence[Any]) -> bool:
        """Whether an image has as many objects as are asked for."""
        kept = len(objects) >= self.min_objects and (not self.max_objects or len(objects) <= self.max_objects)
        if not kept:
            self._others.append(name)
        return kept

    def notes(self) -> list[str]:
        """What was left out, in sentences."""
        notes = []
        if self.small:
            notes.append(f"{self.small} boxes are smaller than min_area={self.min_area:g} of their image; left out")
        if self._others:
            most = f" to {self.max_objects}" if self.max_objects else " or more"
            notes.append(
                f"{len(self._others)} images have not {self.min_objects}{most} objects; left out; the first: "
                f"{self._others[0]!r}"
            )
        return notes
