"""The memory of a training step at 512 px, with activations kept, computed again, or kept in the CPU's memory."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from gpu_checks.models import SIZES, milliseconds
from gpu_checks.table import Row
from gpu_checks.train import Steps
from ldm.networks.offloading import offloaded
from ldm.training.dry_run import LiveBytes

BATCH_SIZE = 4


def measure(device: torch.device, size: str, out: Path) -> list[Row]:
    """GiB of what forward and backward make beside weights, and milliseconds of both."""
    own, rows = SIZES[size], []
    for name, more, kept in (
        ("kept", {}, False), ("computed again (checkpoint_activations)", {"checkpoint_activations": True}, False),
        ("in the CPU's memory (offload_activations)", {}, True),
    ):  # fmt: skip
        steps = Steps(own, device, own.latent[512], BATCH_SIZE, **more)

        def work(steps: Steps = steps, kept: bool = kept) -> None:
            with offloaded(steps.network) if kept else nullcontext():
                loss = steps.loss()
            loss.backward()

        rows.append(Row(f"activations {name}", _peak(work, device), "GiB"))
        rows.append(Row("forward and backward", milliseconds(work, device, own.seconds / 4, warm_up=1), "ms"))
        del steps, work
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def _peak(work: Callable[[], None], device: torch.device) -> float:
    """The most that is alive beside what was before, once the gradients are there."""
    work()
    if device.type == "cpu":
        with LiveBytes() as live:
            work()
        return live.peak / 2**30
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**30
