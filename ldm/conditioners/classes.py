"""Class numbers of a batch, checked against the model's number of classes."""

from torch import Tensor

from ldm.errors import UserError


class OutOfRange(UserError):
    """A value in a batch that is out of its conditioner's range; `place` is the sample's index in the batch."""

    def __init__(self, message: str, place: int):
        super().__init__(message)
        self.place = place


def check_classes(values: Tensor, num_classes: int, field: str, key: str) -> None:
    """Raise OutOfRange for class numbers [B, ...] that are not in [0, num_classes), which `key` says."""
    bad = ((values < 0) | (values >= num_classes)).flatten(1 if values.ndim > 1 else 0)
    if bool(bad.any()):
        place = int((bad.any(1) if values.ndim > 1 else bad).nonzero()[0, 0])
        raise OutOfRange(
            f"{field} {values.min().item()}..{values.max().item()}: {key}={num_classes} asks for 0..{num_classes - 1}",
            place,
        )
