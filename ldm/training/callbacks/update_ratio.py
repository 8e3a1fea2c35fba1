"""How far a step moves the weights, relative to their size: about 1e-3 in healthy training with Adam."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm.checkpoint.rows import local
from ldm.errors import UserError
from ldm.training.distributed import all_reduce_sum
from ldm.training.task import Task

MAX_ENTRIES = 1 << 16  # of a tensor, evenly spaced: no second copy of the model is held


class UpdateRatio(pl.Callback):
    """``train/update_ratio``: |change of w| / |w| of every `every_steps`-th step, over the model's trained weights.

    Of large tensors `MAX_ENTRIES` entries stand for all. callback.metrics logs it.
    """

    comes_first = True  # before callback.metrics, which takes what is in task.logs

    def __init__(self, every_steps: int = 50):
        if every_steps < 1:
            raise UserError(f"callback.update_ratio.every_steps={every_steps}: must be at least 1")
        self.every_steps = every_steps
        self._before: list[Tensor] | None = None

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: pl.Trainer, task: Task, optimizer: torch.optim.Optimizer) -> None:
        if (task.step + 1) % self.every_steps == 0:
            self._before = [entries.clone() for entries in _entries(task)]

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        if not task.stepped or self._before is None:
            return
        norms = self._norms(task) if self._before else torch.zeros(2, device=task.device)
        if task.sharded:
            norms = all_reduce_sum(norms.square()).sqrt()
        task.logs["update_ratio"] = norms[0] / norms[1]
        self._before = None

    def _norms(self, task: Task) -> Tensor:
        """The norms of the change and of the weights, [2]."""
        after = _entries(task)
        shares = [own.numel() / len(entries) for own, entries in zip(_trained(task), after, strict=True)]
        scale = torch.tensor(shares, device=task.device).sqrt()
        moved = torch.stack(torch._foreach_norm(torch._foreach_sub(after, self._before)))
        size = torch.stack(torch._foreach_norm(self._before))
        return torch.stack([(scale * moved).norm(), (scale * size).norm()])


def _entries(task: Task) -> list[Tensor]:
    """Views [n] of each trained parameter of the model, in the order of its memory."""
    found = []
    for own in _trained(task):
        step = -(-own.numel() // MAX_ENTRIES)
        found.append(own.as_strided((-(-own.numel() // step),), (step,)))
    return found


def _trained(task: Task) -> list[Tensor]:
    """What this rank has of the model's trained parameters; of a small one that may be nothing."""
    own = [local(parameter.detach()) for parameter in task.model.parameters() if parameter.requires_grad]
    return [rows for rows in own if rows.numel()]
