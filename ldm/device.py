"""Which device to use for sampling and evaluation, what it computes in fast, and how a CPU keeps its memory."""

import contextlib
import ctypes
import logging
import os
import time
from functools import cache

import torch

from ldm.errors import UserError

log = logging.getLogger(__name__)


def choose(name: str = "auto") -> torch.device:
    """`auto` is a GPU (the first, or under torchrun each process's own, as `cuda` is) or else the CPU.

    Raises ValueError for a device that is not there.
    """
    local = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"  # torchrun's processes take a GPU each
    if name == "auto":
        return torch.device(local if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device={name}: not a device; choose auto, cpu or cuda") from error
    if device.type == "meta":
        raise UserError(f"device={name}: computes nothing; choose auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={name}: no GPU is available here")
    return torch.device(local) if name == "cuda" else device


def keep_memory() -> None:
    """Let the C library keep what is freed for the next step; else each step on a CPU, of training or of sampling, gets
    cleared pages anew.

    That is 2 to 10 % of its time. glibc only; elsewhere nothing is done. It is of the whole process, so commands ask
    for it, and never a library in somebody else's.
    """
    trim_threshold, mmap_max = -1, -4  # names of parameters in malloc.h
    with contextlib.suppress(OSError, TypeError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)


def give_memory_back() -> None:
    """Have the C library give what was freed to the system, which it keeps in pieces between others. glibc only."""
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def computes_bf16(accelerator: str = "auto") -> bool:
    """Whether the GPU, or else the CPU, multiplies bf16 matrices itself; where it only emulates, fp32 is far faster.

    `accelerator` is Lightning's; ``cpu`` asks of the CPU although there is a GPU.
    """
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last is Arm's


@cache
def doubt_bf16(kind: str) -> None:
    """Warn, once, that devices of this kind (``cuda``, ``cpu``) only emulate what is asked of them, if they do."""
    if not computes_bf16("auto" if kind == "cuda" else kind):
        log.warning("precision=bf16: this processor only emulates it; fp32 is many times faster here")


def mixed_precision(accelerator: str = "auto") -> str:
    """The precision to train in here, what ``trainer.precision=auto`` means: bf16-mixed where computed, else 32-true.

    Never 16-mixed, which older GPUs compute fast: its range is small, and neither fsdp, guard=spikes nor clipping with
    a fused optimizer goes with it. A user who knows that a run tolerates it has to ask for it.
    """
    return "bf16-mixed" if computes_bf16(accelerator) else "32-true"


def device_clock(device: torch.device) -> float:
    """Seconds to measure what computing costs: of this process on CPU cores, whoever else uses them; else of the wall.

    Waits for a GPU to have done what it was asked for.
    """
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
