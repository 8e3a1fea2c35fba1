"""No step of a training waits for its device: fits on a device without values, where whoever asks for one fails.

Torch's meta device stands for a GPU: it takes every branch that is not the CPU's, and an `.item()`, a `bool()`, a copy
to the CPU or a shape that depends on values raises on it. What it lets pass is a copy to it; one that would wait, as a
GPU's does unless non_blocking, is counted.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch.utils._python_dispatch import TorchDispatchMode
from toys import train

from ldm.conditioners import text
from ldm.run import Run
from ldm.training import trainer
from ldm.training.task import Task

META = torch.device("meta")
NUM_STEPS = 4  # the first may wait: optimizer and averages are made in it
SELDOM = (
    "callback.metrics.every_steps=1000", "callback.speed.every_steps=1000", "callback.update_ratio.every_steps=1000",
    "callback.validation.every_steps=1000", "callback.panels.every_steps=1000", "callback.checkpoint.every_steps=1000",
    "max_steps=2000",
)  # fmt: skip


class Reached(Exception):
    """All steps were done."""


class BlockingCopies(TorchDispatchMode):
    """Copies to the device that would wait for it, by what was copied."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        copies = function.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        source = args[1] if function.overloadpacket is torch.ops.aten.copy_ else args[0] if args else None
        result = function(*args, **kwargs)
        waits = copies and not kwargs.get("non_blocking", len(args) > 2 and args[2])
        if waits and isinstance(source, torch.Tensor) and source.device.type == "cpu" and result.device == META:
            self.found.append(f"{tuple(source.shape)} {source.dtype}")
        return result


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[BlockingCopies]:
    """Fits are on the meta device and end, with Reached, after `NUM_STEPS`; what was copied after the first step."""
    monkeypatch.setitem(trainer.STRATEGIES, "auto", lambda: SingleDeviceStrategy(device=META))
    monkeypatch.setattr(CPUAccelerator, "setup_device", lambda self, device: None)
    monkeypatch.setattr(SingleDeviceStrategy, "teardown", lambda self: None)  # it would bring all to the CPU
    monkeypatch.setattr(
        sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: ["cpu", "meta"]
    )
    mode, inside = BlockingCopies(), ExitStack()

    monkeypatch.setattr(torch.utils._foreach_utils, "_get_foreach_kernels_supported_devices", lambda: ["cpu", "meta"])
    autocast, enabled = torch.autocast, torch.is_autocast_enabled
    monkeypatch.setattr(
        torch, "autocast", lambda kind, *a, **k: nullcontext() if kind == "meta" else autocast(kind, *a, **k)
    )
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": kind != "meta" and enabled(kind))

    def at_the_end(task: Task, *_: Any) -> None:
        if task.step == 1:
            inside.enter_context(mode)
        if task.step == NUM_STEPS:
            inside.close()
            raise Reached

    monkeypatch.setattr(Task, "on_train_batch_end", at_the_end)
    torch.__future__.set_swap_module_params_on_conversion(True)  # moved parameters are the same objects, as on a GPU
    yield mode
    torch.__future__.set_swap_module_params_on_conversion(False)
    inside.close()
    text._load.cache_clear()  # its weights were moved to where there are none


# Not captions: transformers' own encoders ask, of each batch of new ones, whether any is padded.
LABELS = ("conditioner=[label]", "conditioner.label.num_classes=9", "conditioner.label.width=16")
KINDS = {
    "autoencoder": ("quickstart/autoencoder", "ema=default"),
    "vq": ("quickstart/autoencoder", "regularizer=vq", "guard=spikes"),
    "diffusion": ("quickstart/diffusion", *LABELS),
    "resampled": ("quickstart/diffusion", *LABELS, "resampler=loss_history", "log_variance=fourier", "ema=power"),
    "expert": ("quickstart/diffusion", *LABELS, "expert.node=[2,1]"),
    "boxes": ("tasks/layout",),
    "hole": ("tasks/inpainting",),
    "low resolution": ("tasks/superres_x4",),
    "labelled": ("ldm/cin256_v2", "trainer.gradient_clip_val=1.0"),
    "classifier": ("quickstart/classifier",),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_that_does_not_log_waits_for_the_device(
    kind: str, first_stage: Run, tmp_path: Path, copies: BlockingCopies
):
    experiment, *own = KINDS[kind]
    if "autoencoder" not in experiment:
        own = [*own, f"first_stage={first_stage.folder}"]
    with pytest.raises(Reached):
        train(experiment, tmp_path, *SELDOM, *own)
    assert copies.found == []


def test_a_value_that_is_asked_for_is_seen(first_stage: Run, tmp_path: Path, copies: BlockingCopies, monkeypatch):
    step = Task.optimizer_step

    def asking(task: Task, *arguments: Any, **named: Any) -> None:
        step(task, *arguments, **named)
        task.logs["loss"].item()

    monkeypatch.setattr(Task, "optimizer_step", asking)
    with pytest.raises(RuntimeError, match="meta"):
        train("quickstart/classifier", tmp_path, f"first_stage={first_stage.folder}", *SELDOM)
