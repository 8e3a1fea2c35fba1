"""Dead codes of a VQ first stage are reset to current features of the encoder (as in arXiv 2005.00341, 3.1)."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm.diffusion.counter_random import uniform
from ldm.errors import UserError
from ldm.training.distributed import all_reduce_sum, gather
from ldm.training.task import Task


class CodeRevival(pl.Callback):
    """Every `every_steps` steps, codes used less than `min_hits` times since the last look are set to random features.

    The features are of the current batch, over all ranks, drawn by an address of seed and step. The optimizer's state
    and the average of a revived code start anew.
    """

    def __init__(self, every_steps: int = 500, min_hits: int = 1):
        if every_steps < 1 or min_hits < 1:
            raise UserError("callback.code_revival: every_steps and min_hits must be at least 1")
        self.every_steps = every_steps
        self.min_hits = min_hits
        # Of each code since the last look, on this rank: in no buffer, as DDP gives all ranks those of rank zero.
        self._hits: Tensor | None = None
        self._regularizer: Any = None

    def check(self, task: Task) -> None:
        """Raises ValueError if a task has no codes."""
        if not hasattr(getattr(task, "regularizer", None), "embedding"):
            raise UserError("callback.code_revival: only a VQ first stage has codes to revive (regularizer=vq)")

    def on_train_start(self, trainer: pl.Trainer, task: Task) -> None:
        self.check(task)
        self._regularizer = task.regularizer
        zeros = torch.zeros_like(self._regularizer.counts)
        saved = self._hits is not None and trainer.is_global_zero  # those of all ranks together
        self._hits = self._hits.to(zeros) if saved else zeros

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, task: Task, outputs: Any, batch: dict[str, Any], batch_index: int
    ) -> None:
        self._hits = self._hits + self._regularizer.counts
        if task.stepped and task.step % self.every_steps == 0:
            revived = self.revive(trainer, task, batch["image"], batch["number"])
            for logger in trainer.loggers:
                logger.log_metrics({"train/revived_codes": revived}, step=task.step)

    def revive(self, trainer: pl.Trainer, task: Task, image: Tensor, numbers: Tensor) -> int:
        """Set dead codes, the same on all ranks, to features of their images [B, 3, H, W], numbered `numbers` [B].

        Returns how many codes were dead.
        """
        dead = (all_reduce_sum(self._hits) < self.min_hits).nonzero()[:, 0]
        self._hits = torch.zeros_like(self._hits)
        if not len(dead):
            return 0
        with trainer.precision_plugin.forward_context():
            features = task.autoencoder.encode(image).float().movedim(1, -1).contiguous()
        order = torch.cat(gather(numbers)).argsort()  # that of the samples, however they are spread over ranks
        features = torch.cat(gather(features))[order].flatten(0, -2)  # [values, C]
        draws = uniform(task.seed, "revival", torch.arange(len(dead), device=dead.device), stream=task.step)[:, 0]
        chosen = (draws * len(features)).long().clamp(max=len(features) - 1)
        weight = self._regularizer.embedding.weight
        averages = task.ema.averages_of(weight) if task.ema else []
        weight[dead] = features[chosen]
        for value in trainer.optimizers[0].state.get(weight, {}).values():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                value[dead] = 0
        for average in averages:
            average[dead] = weight[dead].float()
        return len(dead)

    def state_dict(self) -> dict[str, Any]:
        """The hits since the last look, of all ranks together (which call this together)."""
        return {} if self._regularizer is None else {"hits": all_reduce_sum(self._hits)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._hits = state_dict["hits"]
