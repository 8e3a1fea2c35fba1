"""Work of a GPU beside the training's own, for which the next step need not wait, such as averages of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SideStream:
    """A stream of its own on a GPU; elsewhere what is to run beside runs at once.

    What is queued within `beside` sees all that was queued before it. What is queued later, and writes what that reads
    or reads what it writes, comes after a `join`; the processor waits for neither.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None  # where something may be queued still
        self._made: dict[torch.device, torch.cuda.Stream] = {}

    @contextmanager
    def beside(self, device: torch.device) -> Iterator[None]:
        """Within the block a GPU's work goes to its side stream."""
        if device.type != "cuda":
            yield
            return
        if device not in self._made:
            self._made[device] = torch.cuda.Stream(device)
        self._stream = self._made[device]
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """What is queued from here on comes after what was queued beside."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
            self._stream = None
