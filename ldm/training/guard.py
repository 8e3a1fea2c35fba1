"""Steps whose gradients are not finite change nothing: they are skipped, on the device, and counted."""

import torch
from torch import Tensor, nn


class Guard:
    """Lets an optimizer step only with finite gradients, and keeps what the forward left in buffers (batch norm).

    Without a host sync for fused optimizers, which take the verdict as a tensor as they take a gradient scaler's.
    """

    def __init__(self, module: nn.Module):
        self._module = module
        self._kept: list[Tensor] | None = None  # buffers as the last good step left them
        self._bad: Tensor | None = None  # the verdict on this step, 0 or 1
        self._counts = torch.zeros(3)  # steps skipped: in all, in a row, in a row at most

    def judge(self, norm: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Before a step: `norm` is that of all gradients, the same on all ranks."""
        bad = (~norm.isfinite()).float()
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = bad
        elif bad.item():
            optimizer.zero_grad(set_to_none=True)  # a parameter without gradient is left alone
        self._bad = bad

    def settle(self) -> None:
        """After a step: put the buffers back if it was skipped, and count."""
        buffers = [buffer for buffer in self._module.buffers() if buffer.numel()]
        if self._bad is None:
            return
        bad = self._bad.bool()
        if self._kept is not None:
            for buffer, kept in zip(buffers, self._kept, strict=True):
                buffer.copy_(torch.where(bad, kept, buffer))
        self._kept = [buffer.clone() for buffer in buffers]
        total, in_row, worst = self._counts.to(bad.device)
        in_row = (in_row + 1) * bad
        self._counts = torch.stack([total + bad, in_row, torch.maximum(worst, in_row)])
        self._bad = None

    def counts(self) -> tuple[int, int]:
        """(steps skipped in all, most in a row since this was last asked). Waits for the device."""
        total, in_row, worst = self._counts.tolist()
        self._counts[2] = in_row
        return int(total), int(worst)

    def state_dict(self) -> dict[str, Tensor]:
        return {"counts": self._counts.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._counts = state["counts"].clone()
