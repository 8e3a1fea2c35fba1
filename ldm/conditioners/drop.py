"""Which samples of a batch lose a condition, known to the processor too: to ask the device would stop it."""

from typing import Any

import torch
from torch import Tensor


class Drop(Tensor):
    """bool [B], a tensor like any other, whose `all`, `any` and `tolist` are those of the values it was made of.

    What is computed of it is a plain tensor. The one override here of what is torch's: conditioners, those of plugins
    too, take a tensor and ask it.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as torch has it for Parameter
    known: Tensor

    @classmethod
    def of(cls, values: Tensor) -> "Drop":
        """Made of `values`, bool [B] on a CPU."""
        assert values.device.type == "cpu" and values.dtype == torch.bool
        found = values.as_subclass(cls)
        found.known = values
        return found

    def to(self, device: torch.device, **_: Any) -> "Drop":  # type: ignore[override]
        """The same on `device`, where nothing waits for it."""
        found = self.known.to(device, non_blocking=True).as_subclass(Drop)
        found.known = self.known
        return found

    def all(self) -> Tensor:  # type: ignore[override]
        return self.known.all()

    def any(self) -> Tensor:  # type: ignore[override]
        return self.known.any()

    def tolist(self) -> list[bool]:  # type: ignore[override]
        return self.known.tolist()
