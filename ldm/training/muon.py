"""Muon: steps that are the momentum made orthogonal, for matrices and kernels; AdamW for all else; one optimizer.

K. Jordan et al. 2024 (kellerjordan.github.io/posts/muon), with steps scaled to AdamW's as in arXiv 2502.16982, section
2.2, so that one rate and one weight decay serve both.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint.rows import is_sharded
from ldm.device import computes_bf16
from ldm.errors import UserError
from ldm.training.optim import check_rates, decay_groups, trainable

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic x, x^3, x^5: steep at 0, and then about 1
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # whose weights are maps from vectors to vectors


def orthogonal(x: Tensor, steps: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """About U V^T of x [M, N] = U S V^T, its singular values between .7 and 1.2, by Newton-Schulz in `dtype`."""
    a, b, c = COEFFICIENTS
    x = x.to(dtype)
    tall = len(x) > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon on `matrices`, kernels [O, I, ...] as matrices [O, I ...], and AdamW on `others`, two groups of each kind of
    weight decay.

    Takes the guard's verdict as a tensor, `found_inf`, as fused optimizers do: a step that is rejected changes nothing.
    """

    found_inf: Tensor | None = None

    def __init__(
        self, groups: Sequence[dict[str, Any]], lr: float, momentum: float, betas: tuple[float, float], eps: float,
        num_iterations: int, fused: bool,
    ):  # fmt: skip
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "num_iterations": num_iterations}
        super().__init__(groups, {**defaults, "weight_decay": 0.0, "matrices": False, "fused": fused})
        own = [group for group in self.param_groups if not group["matrices"]]
        self._adamw = torch.optim.AdamW([nn.Parameter(torch.empty(0))], lr=lr, betas=betas, eps=eps, fused=fused)
        for group in own:
            for name, value in self._adamw.defaults.items():
                group.setdefault(name, value)
        self._emulated = not computes_bf16("cpu")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]  # torch's has overloads
        """One step of both. Returns what `closure`, which computes the gradients, does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["matrices"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step(parameter, group)
        self._adamw.param_groups = [group for group in self.param_groups if not group["matrices"]]
        self._adamw.state = self.state
        if self.defaults["fused"]:
            self._adamw.found_inf = self.found_inf  # type: ignore[attr-defined]  # what fused steps look for
        self._adamw.step()
        return loss

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, grad = self.state[parameter], parameter.grad
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum, buffer = group["momentum"], state["momentum_buffer"]
        kept: Tensor | float = 1.0  # 0 for a step that is rejected
        if self.found_inf is not None:
            kept = 1 - self.found_inf.to(grad.device)
            grad = torch.where(kept > 0, grad, buffer)  # by which the momentum stays as it is
        buffer.lerp_(grad, 1 - momentum)
        update = grad.lerp(buffer, momentum)  # Nesterov's
        matrix = update.flatten(1)
        emulated = self._emulated and matrix.device.type == "cpu"
        dtype = torch.float32 if emulated else torch.bfloat16
        direction = orthogonal(matrix, group["num_iterations"], dtype).to(parameter.dtype).view_as(parameter)
        rate = 0.2 * math.sqrt(max(matrix.shape)) * group["lr"]
        parameter.mul_(1 - kept * group["lr"] * group["weight_decay"])
        parameter.sub_(kept * direction, alpha=rate)


def muon(
    lr: float,
    momentum: float = 0.95,
    betas: Sequence[float] = (0.9, 0.999),
    weight_decay: float = 0.01,
    eps: float = 1e-8,
    num_iterations: int = 5,
    fused: bool = True,
) -> Callable:
    """Muon for the weights of linear layers and convolutions, AdamW for all else, decayed as by optimizer=adamw.

    Every rank computes the same steps, of whole matrices: raises UserError where they are sharded.
    """
    check_rates(lr, betas, eps, weight_decay)
    if not 0 <= momentum < 1:
        raise UserError(f"optimizer.momentum={momentum}: must lie in [0, 1)")
    if num_iterations < 1:
        raise UserError(f"optimizer.num_iterations={num_iterations}: must be at least 1")

    def build(module: nn.Module) -> Muon:
        parameters = trainable(module)
        if any(map(is_sharded, parameters)):
            raise UserError("optimizer=muon: takes whole matrices, and trainer.strategy=fsdp has rows; take ddp")
        maps = {id(layer.weight) for layer in module.modules() if isinstance(layer, LAYERS)}
        matrices = [p for p in parameters if id(p) in maps]
        others = [p for p in parameters if id(p) not in maps]
        mapped = {"params": matrices, "weight_decay": weight_decay, "matrices": True}
        groups = [mapped, *decay_groups(others, weight_decay)]
        return Muon(groups, lr, momentum, (betas[0], betas[1]), eps, num_iterations, fused)

    return build
