"""Writing in the background while training continues: a copy of the data, and a thread that writes it."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.rows import mapped


class Writer:
    """Runs one job at a time in a thread; an error of the job is raised by `finish`."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin `job`, after the one before it."""
        self.finish()

        def work() -> None:
            try:
                job()
            except Exception as error:
                self._error = error

        self._thread = threading.Thread(target=work, name="checkpoint writer")  # the process waits for it at exit
        self._thread.start()

    def finish(self) -> None:
        """Wait for the job. Raises what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error


def copied(state: Any) -> Any:
    """The same nested containers with every tensor copied to the CPU, once where it stands in several places."""
    copies: dict[tuple, Tensor] = {}

    def copy(_: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        identity = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
        if value.numel() == 0 or identity not in copies:
            copies[identity] = value.detach().to("cpu", copy=True)
        return copies[identity]

    return mapped(state, copy)
