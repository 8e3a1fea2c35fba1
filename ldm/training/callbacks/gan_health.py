"""Early warnings of an adversarial loss that goes wrong.

The signs are those that users of the public code met: a discriminator that wins, one that learns nothing (its loss
stays at 1), one that ruins the reconstructions, and an adaptive weight at its limit.
"""

import logging
from typing import Any

import pytorch_lightning as pl

from ldm.training.task import Task

log = logging.getLogger(__name__)

WON = 0.1  # hinge loss below which the discriminator separates nearly all patches
LEARNS_NOTHING = 0.02  # of 1, the hinge loss of a discriminator that answers 0
RUINED = 1.25  # reconstruction loss, relative to that of before the discriminator


class GanHealth(pl.Callback):
    """Looks at the logged means; a sign that holds for `patience` of them in a row is warned of, once.

    It needs callback.metrics before it, and does nothing in a run without a discriminator.
    """

    def __init__(self, patience: int = 10):
        self.patience = patience
        self.before: float | None = None  # the last reconstruction loss without a discriminator
        self._seen = -1.0
        self._held: dict[str, int] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        values = task.latest
        if "train/rec" in values and values["samples"] != self._seen:
            self._seen = values["samples"]
            self.look({name.removeprefix("train/"): value for name, value in values.items()}, task.step, task)

    def look(self, values: dict[str, float], step: int, task: Task) -> list[str]:
        """Judge one set of means; returns (and logs) the warnings that are due."""
        if "discriminator" not in values:
            self.before = values["rec"]
            return []
        due = []
        for sign, text in self._signs(values, task.reconstruction.max_adaptive_weight).items():
            self._held[sign] = self._held.get(sign, 0) + 1 if text else 0
            if self._held[sign] == self.patience:
                due.append(f"step {step}: {text}")
        for text in due:
            log.warning("%s", text)
        return due

    def _signs(self, values: dict[str, float], max_weight: float) -> dict[str, str | None]:
        loss, gap = values["discriminator"], values["logits_real"] - values["logits_fake"]
        ruined = self.before is not None and values["rec"] > RUINED * self.before
        return {
            "won": f"the discriminator wins (its loss is {loss:.3f}, its logits {gap:.1f} apart): the autoencoder gets "
            "no useful gradient from it. Lower reconstruction.adversarial_weight, take fewer discriminator.channels, "
            "or start it later (reconstruction.start_step)"
            if loss < WON
            else None,
            "nothing": f"the discriminator learns nothing (its loss stays at {loss:.3f}, as if it answered 0): raise "
            "optimizer.lr or take more discriminator.channels"
            if abs(loss - 1) < LEARNS_NOTHING
            else None,
            "ruined": f"the reconstruction loss is {values['rec']:.4f}, it was {self.before:.4f} before the "
            "discriminator began: lower reconstruction.adversarial_weight"
            if ruined
            else None,
            "limit": f"the adaptive weight is at its limit ({max_weight:g}): the discriminator's gradient vanishes"
            if values["adaptive_weight"] >= 0.99 * max_weight
            else None,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before, "held": dict(self._held)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before, self._held = state_dict["before"], dict(state_dict["held"])
