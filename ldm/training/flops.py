"""The arithmetic of a training step, counted, and the most that known GPUs can do: for model FLOPs utilisation."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from ldm.training.task import Task

# Name of a GPU, by words -> dense TFLOP/s of its tensor cores in half precision (fp16 or bf16, fp32 sums) and in TF32,
# or in plain fp32 where there is none, from the makers' data sheets. The first row whose words all occur counts.
PEAKS = (
    ("B200", 2250, 1125),
    ("GH200", 989, 494),
    ("H200", 989, 494),
    ("H100 PCIe", 756, 378),
    ("H100 NVL", 835, 417),
    ("H100", 989, 494),
    ("A100", 312, 156),
    ("A40", 149.7, 74.8),
    ("A10", 125, 62.5),
    ("L40S", 362, 183),
    ("L40", 181, 90.5),
    ("L4", 121, 60),
    ("V100", 125, 15.7),
    ("T4", 65, 8.1),
    ("RTX 4090", 165.2, 82.6),
    ("RTX 3090", 71, 35.6),
)


def _products(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    """FLOP of q k^T and of its product with v."""
    return sdpa_flop_count(q.shape, k.shape, v.shape)


def _their_gradients(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    """Two products for each; what a fused kernel computes again is not counted."""
    return 2 * sdpa_flop_count(q.shape, k.shape, v.shape)


# Fused attention on a CPU, which torch's registry leaves out.
FUSED_ON_CPU: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _products,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _their_gradients,
}


class Counter(TorchDispatchMode):
    """Adds up the FLOP of each operation; torch's FlopCounterMode also hooks modules, which forbids autograd.grad."""

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        formula = FUSED_ON_CPU.get(operation._overloadpacket) or flop_registry.get(operation._overloadpacket)
        if formula:
            self.flop += formula(*args, **(kwargs or {}), out_val=result)
        return result


def peak(device: torch.device, precision: str) -> float | None:
    """FLOP/s of `device` in a run of this precision; None on a CPU and on a GPU that the table does not know."""
    if device.type != "cuda":
        return None
    return _listed(torch.cuda.get_device_name(device), low="16" in precision)


def _listed(name: str, low: bool) -> float | None:
    words = set(re.split(r"[\s-]+", name))
    return next((1e12 * (half if low else full) for known, half, full in PEAKS if set(known.split()) <= words), None)


def count(task: Task, batch: dict[str, Any]) -> int:
    """FLOP of forward and backward on one micro-batch, by doing them once; nothing of the training changes.

    Compiled networks are run uncompiled; otherwise it computes as the training does, whose encoders keep what they are
    asked here for later steps. With activation checkpointing what is computed a second time counts too.
    """
    trainer = task.trainer
    buffers = [(buffer, buffer.clone()) for buffer in task.trained.buffers()]
    devices = [task.device] if task.device.type == "cuda" else []
    logs = task.logs
    counter = Counter()
    with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"), counter:
        with trainer.precision_plugin.forward_context():
            loss = task.training_step(batch, trainer.accumulate_grad_batches - 1)
        loss.backward()
    for parameter in task.trained.parameters():
        parameter.grad = None
    with torch.no_grad():
        for buffer, held in buffers:
            buffer.copy_(held)
    task.logs = logs
    return counter.flop
