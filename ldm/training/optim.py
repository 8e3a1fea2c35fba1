"""Learning-rate schedules as factors of the step, the optimizers, and their state read back."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ldm.checkpoint.rows import Rows, placed
from ldm.errors import UserError

LRSchedule = Callable[[int], float]


def constant(warmup_steps: int = 0, start_factor: float | None = None) -> LRSchedule:
    """Factor 1 after a linear warm-up from `start_factor` at step 0, by default one step's share of it."""
    return _warmup(warmup_steps, start_factor)


def _warmup(steps: int, start_factor: float | None) -> LRSchedule:
    if start_factor is None:
        return lambda step: min(1.0, (step + 1) / (steps + 1))
    if not 0 <= start_factor <= 1:
        raise UserError(f"lr.start_factor={start_factor:g}: must lie in [0, 1]")
    return lambda step: 1.0 if step >= steps else start_factor + (1 - start_factor) * step / steps


def cosine(
    max_steps: int, warmup_steps: int = 0, final_factor: float = 0.0, start_factor: float | None = None
) -> LRSchedule:
    """Half a cosine from 1 at the end of the warm-up (see `constant`) to `final_factor` at `max_steps`, then that."""
    if max_steps <= warmup_steps:
        raise UserError(f"lr: max_steps={max_steps} must exceed lr.warmup_steps={warmup_steps}; a trial sets that to 0")
    warmup = _warmup(warmup_steps, start_factor)

    def factor(step: int) -> float:
        progress = min(1.0, max(0.0, (step - warmup_steps) / (max_steps - warmup_steps)))
        decay = final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * progress))
        return decay * warmup(step)

    return factor


def adamw(
    lr: float,
    betas: Sequence[float] = (0.9, 0.999),
    weight_decay: float = 0.01,
    eps: float = 1e-8,
    fused: bool = True,
    decay_vectors: bool = False,
) -> Callable:
    """AdamW, as one fused kernel per step; weight decay on matrices and kernels, and with `decay_vectors` on all.

    Vectors are biases and norms, which the published latent diffusion models decay too.
    """
    check_rates(lr, betas, eps, weight_decay)

    def build(module: nn.Module) -> torch.optim.Optimizer:
        groups = decay_groups(trainable(module), weight_decay, weight_decay if decay_vectors else 0.0)
        return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=fused)

    return build


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """`optimizer.load_state_dict(state)`, laid out as the parameters are.

    Fused kernels run over memory, not over indices: a state saved in another memory layout would be applied to the
    wrong weights, without an error on a CPU. Raises UserError for a state of other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    held_by = {place: held for place, held in state["state"].items() if place < len(parameters)}
    own = {place: _placed(held, parameters[place]) for place, held in held_by.items()}
    try:
        optimizer.load_state_dict({**state, "state": {**state["state"], **own}})
    except ValueError as error:
        raise UserError(f"optimizer: its state is of other parameters ({error})") from error
    for parameter, held in optimizer.state.items():
        for name, value in held.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                held[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def go_on_from(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """`load_state`, but for the rates and other settings, which stay this optimizer's own.

    Torch takes the settings of the `state` too. What a class names as its `COUNTS` are no settings. Raises UserError
    for a state of other parameters, or of another kind of optimizer.
    """
    counts = {"params", *getattr(optimizer, "COUNTS", ())}
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=False):
        if saved.keys() - group.keys() or counts - saved.keys():
            raise UserError("optimizer: its state is of another kind of optimizer")
    own = [{key: value for key, value in group.items() if key not in counts} for group in optimizer.param_groups]
    load_state(optimizer, state)
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)


def _placed(held: dict[str, Any], parameter: torch.Tensor) -> dict[str, Any]:
    """The optimizer's state of a parameter, sharded as the parameter is."""
    return {name: placed(v, parameter) if isinstance(v, torch.Tensor | Rows) and v.shape == parameter.shape else v
            for name, v in held.items()}  # fmt: skip


def adam(lr: float, betas: Sequence[float] = (0.5, 0.9), eps: float = 1e-8, fused: bool = True) -> Callable:
    """Adam without weight decay, as the published first stages are trained (betas 0.5, 0.9)."""
    check_rates(lr, betas, eps)
    return lambda module: torch.optim.Adam(trainable(module), lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=fused)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimizer steps, in the module's order, by which states are saved."""
    return [p for p in module.parameters() if p.requires_grad]


def decay_groups(parameters: Sequence[nn.Parameter], weight_decay: float, vectors: float = 0.0) -> list[dict[str, Any]]:
    """Matrices and kernels with their weight decay, and vectors (biases and norms) with theirs, as groups."""
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": vectors},
    ]


def check_rates(lr: float, betas: Sequence[float], eps: float, weight_decay: float = 0.0) -> None:
    """Raises UserError, naming the key of the optimizer, for numbers that no Adam steps by."""
    for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        if value < 0:
            raise UserError(f"optimizer.{name}={value}: must be at least 0")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"optimizer.betas={list(betas)}: must be two numbers in [0, 1)")
