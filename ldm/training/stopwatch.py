"""Times the phases of a step without waiting for the device."""

import time
from typing import Any

import torch


class Stopwatch:
    """Seconds by phase: `lap(phase)` gives a phase the time since the last lap.

    On a GPU the laps are events on its stream that are read later, so that a phase is the device's time: what it spends
    idle, waiting for data, is the phase during which nothing was queued for it.
    """

    def __init__(self) -> None:
        self._on_gpu = False
        self._laps: list[tuple[str, Any]] = []  # phase, and when it ended: seconds, or an Event of CUDA

    def start(self, device: torch.device) -> None:
        """Begin now, on `device`; what was measured before is forgotten."""
        self._on_gpu = device.type == "cuda"
        self._laps = []
        self.lap("")

    def lap(self, phase: str) -> None:
        """What was done since the last lap is `phase`."""
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._laps.append((phase, event))
        else:
            self._laps.append((phase, time.perf_counter()))

    def read(self) -> dict[str, float]:
        """Seconds of each phase since this was last asked. Waits for the device to reach the last lap."""
        if self._on_gpu:
            self._laps[-1][1].synchronize()
        seconds: dict[str, float] = {}
        for (_, began), (phase, ended) in zip(self._laps, self._laps[1:], strict=False):
            passed = began.elapsed_time(ended) / 1e3 if self._on_gpu else ended - began
            seconds[phase] = seconds.get(phase, 0.0) + passed
        self._laps = self._laps[-1:]
        return seconds
