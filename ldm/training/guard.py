"""Steps whose gradients are not finite, or far larger than usual, change nothing: they are skipped and counted."""

import torch
from torch import Tensor, nn

from ldm.errors import UserError


class Guard:
    """Lets an optimizer step only with finite gradients, and undoes a skipped step's changes to buffers (batch norm).

    With a `spike_ratio` also only if their norm is at most that many times the median of the last `spike_window`
    accepted ones, once there are as many. Without a host sync for fused optimizers, which take the verdict as a tensor
    as they take a gradient scaler's.
    """

    def __init__(self, module: nn.Module, spike_ratio: float | None = None, spike_window: int = 100):
        if spike_ratio is not None and spike_ratio <= 1:
            raise UserError(f"guard.spike_ratio={spike_ratio}: must exceed 1, or every other step would be skipped")
        if spike_window < 1:
            raise UserError(f"guard.spike_window={spike_window}: must be at least 1")
        self.spike_ratio = spike_ratio
        self._module = module
        self._buffers: list[Tensor] | None = None  # looked up at the first step, when they are on their final device
        self._kept: list[Tensor] | None = None  # buffers as the last good step left them
        self._bad: Tensor | None = None  # the verdict on this step, 0 or 1
        self._verdicts: list[Tensor] = []  # on the steps that are not counted yet
        self._total = self._in_row = self._worst = 0  # steps skipped: in all, in a row, in a row at most
        self._norms = torch.zeros(spike_window if spike_ratio else 0)  # of accepted steps, newest last; 0 for none yet

    @property
    def reason(self) -> str:
        """Why steps are skipped, in words."""
        return f"not finite, or beyond guard.spike_ratio={self.spike_ratio:g}" if self.spike_ratio else "not finite"

    def judge(self, norm: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Before a step: `norm` is that of all gradients, the same on all ranks."""
        rejected = ~norm.isfinite()
        if self.spike_ratio:
            self._norms = self._norms.to(norm.device)
            full = self._norms[0] > 0
            rejected = rejected | (full & (norm > self.spike_ratio * self._norms.median()))
            longer = torch.cat([self._norms[1:], norm.detach().float()[None]])
            self._norms = torch.where(rejected, self._norms, longer)
        bad = rejected.float()
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = bad  # type: ignore[attr-defined]  # what fused steps look for
        elif bad.item():
            optimizer.zero_grad(set_to_none=True)  # a parameter without gradient is left alone
        self._bad = bad

    def settle(self) -> None:
        """After a step: put the buffers back if it was skipped, and count."""
        if self._bad is None:
            return
        if self._buffers is None:
            self._buffers = [buffer for buffer in self._module.buffers() if buffer.numel()]
        buffers = self._buffers
        bad = self._bad.bool()
        if self._kept is not None:
            for buffer, kept in zip(buffers, self._kept, strict=True):
                buffer.copy_(torch.where(bad, kept, buffer))
        self._kept = [buffer.clone() for buffer in buffers]
        self._verdicts.append(self._bad)
        self._bad = None

    def counts(self) -> tuple[int, int]:
        """(steps skipped in all, most in a row since this was last asked). Waits for the device."""
        self._count()
        worst, self._worst = self._worst, self._in_row
        return self._total, worst

    def _count(self) -> None:
        for bad in torch.stack(self._verdicts).tolist() if self._verdicts else ():
            self._total += int(bad)
            self._in_row = (self._in_row + 1) * int(bad)
            self._worst = max(self._worst, self._in_row)
        self._verdicts = []

    def state_dict(self) -> dict[str, Tensor]:
        self._count()
        own = {"counts": torch.tensor([self._total, self._in_row, self._worst], dtype=torch.float32)}
        return {**own, "norms": self._norms.clone()} if self.spike_ratio else own

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._total, self._in_row, self._worst = map(int, state["counts"].tolist())
        self._verdicts = []
        if self.spike_ratio:
            self._norms = state["norms"].clone()
