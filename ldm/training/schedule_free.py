"""Schedule-free AdamW (arXiv 2405.15682): a constant rate, and an average of the weights in the place of its decay.

The trained weights y lie between the base iterates z, which the steps move, and their average x, which is what is
evaluated, saved as the run's average and sampled with. x is kept by `ema=schedule_free`, and no other average goes with
it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import isclose
from typing import Any

import torch
from torch import nn

from ldm.checkpoint.rows import local
from ldm.errors import UserError
from ldm.training.ema import Averages
from ldm.training.optim import LRSchedule, check_rates, decay_groups, trainable


class ScheduleFreeAdamW(torch.optim.Optimizer):
    """Algorithm 1 with AdamW's second moments; z and these are its state, as much as AdamW's.

    A step's weight in the average is the square of the largest rate so far, so that a warm-up weighs little. A call
    without any gradient, as of a step that the guard rejects, changes nothing.
    """

    COUNTS = ("num_steps", "largest_lr", "weight_sum")  # of its steps so far, in each group

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "fused": False}
        super().__init__(groups, {**defaults, "num_steps": 0, "largest_lr": 0.0, "weight_sum": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]  # torch's has overloads
        """One step. Returns what `closure`, which computes the gradients, does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if any(p.grad is not None for group in self.param_groups for p in group["params"]):
            for group in self.param_groups:
                self._step(group)
        return loss

    def _step(self, group: dict[str, Any]) -> None:
        (beta1, beta2), lr = group["betas"], group["lr"]
        group["num_steps"] += 1
        group["largest_lr"] = max(group["largest_lr"], lr)
        group["weight_sum"] += group["largest_lr"] ** 2
        share = group["largest_lr"] ** 2 / group["weight_sum"] if group["weight_sum"] else 0.0  # of z in x
        trained = [p for p in group["params"] if p.grad is not None]
        if not trained:
            return
        for parameter in trained:
            if not self.state[parameter]:
                self.state[parameter] = {"z": parameter.detach().clone(), "exp_avg_sq": torch.zeros_like(parameter)}
        z, squares = ([local(self.state[p][name]) for p in trained] for name in ("z", "exp_avg_sq"))
        weights, grads = [local(p) for p in trained], [local(p.grad) for p in trained]  # each rank's own rows
        torch._foreach_lerp_(squares, torch._foreach_mul(grads, grads), 1 - beta2)
        scale = torch._foreach_div(squares, 1 - beta2 ** group["num_steps"])
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, group["eps"])
        direction = list(torch._foreach_div(grads, scale))
        if group["weight_decay"]:
            torch._foreach_add_(direction, weights, alpha=group["weight_decay"])
        torch._foreach_lerp_(weights, z, share)
        torch._foreach_sub_(weights, direction, alpha=lr * (1 - beta1 * (1 - share)))
        torch._foreach_sub_(z, direction, alpha=lr)


class ScheduleFree:
    """Makes a module's optimizer; weight decay as by optimizer=adamw. `betas[0]` is where y lies between z and x."""

    def __init__(self, lr: float, betas: Sequence[float] = (0.9, 0.999), weight_decay: float = 0.01, eps: float = 1e-8):
        check_rates(lr, betas, eps, weight_decay)
        self.lr = lr
        self.betas = (betas[0], betas[1])
        self.weight_decay = weight_decay
        self.eps = eps

    def __call__(self, module: nn.Module) -> ScheduleFreeAdamW:
        return ScheduleFreeAdamW(decay_groups(trainable(module), self.weight_decay), self.lr, self.betas, self.eps)

    def check(self, ema: Averages | None) -> None:
        """Raises UserError unless `ema` is the average that these steps are made for."""
        if ema is None or ema.of is not self:
            raise UserError("optimizer=schedule_free: its weights are used by their own average; set ema=schedule_free")


class ScheduleFreeAverage(Averages):
    """x of the optimizer `of`, whose steps the schedule `lr` scales.

    From y = (1 - beta) z + beta x and x' = (1 - c) x + c z' follows x' = (1 - w) x + w y', w = c / (1 - beta + beta c):
    an average of the trained weights themselves, as any other here. A step that was skipped counts as one with the
    weights as they were.
    """

    def __init__(self, module: nn.Module, of: ScheduleFree, lr: LRSchedule):
        super().__init__(module, ["ema"])
        self.of = of
        self._beta, self._lr = of.betas[0], lr
        self._at, self._largest, self._sum = 0, 0.0, 0.0  # of the first `_at` steps

    def decays(self, num_updates: int) -> Sequence[float]:
        if num_updates + 1 < self._at:
            self._at, self._largest, self._sum = 0, 0.0, 0.0
        while self._at <= num_updates:
            self._largest = max(self._largest, self._lr(self._at))
            self._sum += self._largest**2
            self._at += 1
        share, beta = self._largest**2 / self._sum if self._sum else 0.0, self._beta
        return [1 - share / (1 - beta + beta * share)]

    def follows(self, optimizer: torch.optim.Optimizer) -> bool:
        if self.num_updates == 0:
            return True
        self.decays(self.num_updates - 1)
        group = optimizer.param_groups[0]
        largest, steps = group["largest_lr"], group["weight_sum"] / (group["largest_lr"] or 1.0) ** 2
        same_rate = isclose(largest, group["base_lr"] * self._largest, rel_tol=1e-6)
        return same_rate and isclose(steps, self._sum / (self._largest or 1.0) ** 2, rel_tol=0.01)  # a few are skipped

    def describe(self) -> dict[str, Any]:
        return {}


def average(optimizer: ScheduleFree, lr: LRSchedule) -> partial:
    """The average that a run with optimizer=schedule_free keeps in the place of EMA."""
    return partial(ScheduleFreeAverage, of=optimizer, lr=lr)
