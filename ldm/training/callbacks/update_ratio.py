"""How far a step moves the weights, relative to their size: about 1e-3 in healthy training with Adam."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm.training.task import Task

MAX_ENTRIES = 1 << 16  # of a tensor, evenly spaced: no second copy of the model is held


class UpdateRatio(pl.Callback):
    """``train/update_ratio``: |change of w| / |w| of every `every_steps`-th step, over the model's trained weights.

    Of large tensors `MAX_ENTRIES` entries stand for all. It needs callback.metrics after it, which logs it.
    """

    def __init__(self, every_steps: int = 50):
        if every_steps < 1:
            raise ValueError(f"callback.update_ratio.every_steps={every_steps}: must be at least 1")
        self.every_steps = every_steps
        self._before: list[Tensor] = []

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: pl.Trainer, task: Task, optimizer: torch.optim.Optimizer) -> None:
        if (task.step + 1) % self.every_steps == 0:
            self._before = [entries.clone() for entries in _entries(task)]

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        if not task.stepped or not self._before:
            return
        after = _entries(task)
        parameters = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
        shares = [parameter.numel() / len(entries) for parameter, entries in zip(parameters, after, strict=True)]
        scale = torch.tensor(shares, device=after[0].device).sqrt()
        moved = torch.stack(torch._foreach_norm(torch._foreach_sub(after, self._before)))
        size = torch.stack(torch._foreach_norm(self._before))
        task.logs["update_ratio"] = (scale * moved).norm() / (scale * size).norm()
        self._before = []


def _entries(task: Task) -> list[Tensor]:
    """Views [n] of each trained parameter of the model, in the order of its memory."""
    found = []
    for parameter in task.model.parameters():
        if parameter.requires_grad:
            step = -(-parameter.numel() // MAX_ENTRIES)
            found.append(parameter.detach().as_strided((-(-parameter.numel() // step),), (step,)))
    return found
