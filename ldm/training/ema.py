"""Exponential moving average of weights: one fused update for all parameters, swapped in where it is wanted."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Average of a module's trainable parameters with the warm-up decay min(decay, (1 + n) / (10 + n)) after n updates.

    Buffers and frozen parameters are not averaged. The averages are fp32 on the parameters' device.
    """

    def __init__(self, module: nn.Module, decay: float = 0.9999):
        if not 0 <= decay < 1:
            raise ValueError(f"ema.decay={decay}: must be in [0, 1)")
        self.decay = decay
        self.module = module
        self.num_updates = 0
        self._names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        self._averages = [parameter.detach().clone().float() for parameter in self._parameters()]

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the current parameters; call once per optimizer step."""
        parameters = self._parameters()
        if self._averages and self._averages[0].device != parameters[0].device:
            self._averages = [a.to(p.device) for a, p in zip(self._averages, parameters, strict=True)]
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(self._averages, [parameter.detach().float() for parameter in parameters], 1 - decay)
        self.num_updates += 1

    def average_of(self, parameter: nn.Parameter) -> Tensor:
        """The average of one of the module's trainable parameters, itself and not a copy."""
        place = next(place for place, own in enumerate(self._parameters()) if own is parameter)
        return self._averages[place]

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the block the module computes with the averages; the same tensors come back after it."""
        parameters = self._parameters()
        held = [parameter.data for parameter in parameters]
        try:
            for parameter, average in zip(parameters, self._averages, strict=True):
                parameter.data = average.to(device=parameter.device, dtype=parameter.dtype)
            yield
        finally:
            for parameter, data in zip(parameters, held, strict=True):
                parameter.data = data

    def weights(self) -> dict[str, Tensor]:
        """The module's state dict with averages in the place of parameters."""
        return {**self.module.state_dict(), **dict(zip(self._names, self._averages, strict=True))}

    def state_dict(self) -> dict:
        return {"num_updates": self.num_updates, "averages": dict(zip(self._names, self._averages, strict=True))}

    def load_state_dict(self, state: dict) -> None:
        if sorted(state["averages"]) != sorted(self._names):
            raise ValueError("the checkpoint's EMA is of other parameters than this model's")
        self.num_updates = state["num_updates"]
        self._averages = [state["averages"][name].clone().float() for name in self._names]
