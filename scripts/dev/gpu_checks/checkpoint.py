"""What a checkpoint of one GiB stops a training for: written in the background, as on GPUs, and at once."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from gpu_checks.models import SIZES, wait
from gpu_checks.table import NEEDS_GPU, Row
from ldm.files import sha256
from ldm.training.background import Writer, copied

NUM_TENSORS = 64


def measure(device: torch.device, size: str, out: Path) -> list[Row]:
    """Seconds until the training goes on, and until the file is there."""
    count = SIZES[size].state_bytes // 4 // NUM_TENSORS
    state = {str(place): torch.randn(count, device=device) for place in range(NUM_TENSORS)}
    wait(device)
    rows = [Row("a checkpoint", SIZES[size].state_bytes / 2**30, "GiB")]
    with TemporaryDirectory(dir=out) as folder:

        def write(state: dict[str, Tensor]) -> None:
            with (Path(folder) / "state.pt").open("wb") as file:
                torch.save(state, file)
            sha256(Path(folder) / "state.pt")

        writer, began = Writer(), time.perf_counter()
        held = copied(state)
        writer.start(lambda: write(held))
        rows.append(Row("stall, written in the background", time.perf_counter() - began, "s"))
        writer.finish()
        rows.append(Row("until it is there", time.perf_counter() - began, "s"))
        began = time.perf_counter()
        write(state)
        rows.append(Row("stall, written at once", time.perf_counter() - began, "s"))
    return [*rows, *_pinned(state, device)]


def _pinned(state: dict[str, Tensor], device: torch.device) -> list[Row]:
    """The same copy into pinned memory, which nothing uses yet: the first time, when that memory is made, and again."""
    names = ("stall, into pinned memory, at first", "stall, into pinned memory, again")
    if device.type == "cpu":
        return [Row(name, None, note=NEEDS_GPU) for name in names]
    rows = []
    for name in names:
        began = time.perf_counter()
        held = [torch.empty_like(value, device="cpu", pin_memory=True) for value in state.values()]
        for own, value in zip(held, state.values(), strict=True):
            own.copy_(value, non_blocking=True)
        torch.cuda.synchronize(device)
        rows.append(Row(name, time.perf_counter() - began, "s"))
        del held, own
    return rows
