"""Moving averages of weights: one fused update of each profile, the first of which is swapped in where it is wanted.

`EMA` forgets exponentially; `PowerEMA` keeps power-function profiles (EDM2, arXiv:2312.02696, section 3), from which
any other length can be made afterwards (ldm/checkpoint/posthoc_ema.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint.posthoc_ema import exponent
from ldm.checkpoint.rows import is_sharded, local, placed
from ldm.errors import UserError
from ldm.training.side_stream import SideStream

ALIGNMENT = 16  # values at whose multiples tensors begin in a buffer: 64 bytes of fp32


class Averages(ABC):
    """Averages of a module's trainable parameters, one for each of `kinds`; the first is meant where none is named.

    Buffers and frozen parameters are not averaged. The averages are fp32 on the parameters' device.
    """

    snapshot_every_steps: int | None = None  # how often they are kept for good; None is never
    of: object | None = None  # what makes the optimizer whose own average this is; None: of any

    def __init__(self, module: nn.Module, kinds: Sequence[str]):
        self.module = module
        self.num_updates = 0
        self.kinds = tuple(kinds)
        self._side = SideStream()
        self.follow()
        self._places: list[int] = []  # where the parameters lay when the buffers were made
        self._buffers: list[Tensor] = []  # one for each kind
        self._current: Tensor | None = None  # the buffer of the parameters, on a CPU

    def follow(self) -> None:
        """Restart the averages from the module's present parameters."""
        self.join()
        trained = {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad}
        self._names, self._parameters = list(trained), list(trained.values())
        self._averages = [[p.detach().clone().float() for p in self._parameters] for _ in self.kinds]
        self._sharded = any(map(is_sharded, self._parameters))

    @abstractmethod
    def decays(self, num_updates: int) -> Sequence[float]:
        """The decay of each kind in the update that follows `num_updates` others."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What has to be known of the averages to combine them; it goes beside the weights."""

    def follows(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether the decays so far, as this run has them, are those of the steps that the optimizer has taken."""
        return True

    @torch.no_grad()
    def update(self, beside: bool = False) -> None:
        """Move the averages towards the current parameters; call once per optimizer step.

        `beside`: on a GPU it runs beside what follows, and whoever changes the parameters calls `join` first. All here
        that reads averages does so itself.
        """
        self.join()
        if not self._sharded and [parameter.data_ptr() for parameter in self._parameters] != self._places:
            self._gather()
        decays = self.decays(self.num_updates)
        self.num_updates += 1
        if self._current is not None:
            for buffer, decay in zip(self._buffers, decays, strict=True):
                buffer.lerp_(self._current, 1 - decay)
        elif self._parameters:
            with self._side.beside(self._parameters[0].device) if beside else nullcontext():
                current = [parameter.float() for parameter in self._rows(list(self._parameters))]
                for averages, decay in zip(self._averages, decays, strict=True):
                    torch._foreach_lerp_(self._rows(averages), current, 1 - decay)

    def join(self) -> None:
        """What a GPU is given from here on comes after the updates so far."""
        self._side.join()

    def _rows(self, tensors: list[Tensor]) -> list[Tensor]:
        """This rank's rows of each tensor; nothing is checked if none is sharded, as this is called at every step."""
        return [local(tensor) for tensor in tensors] if self._sharded else tensors

    def _gather(self) -> None:
        """Lay the averages out as the parameters are, in one buffer for each kind.

        On a CPU the parameters move into one too: one kernel over a buffer is 1.2 times as fast as one for each tensor.
        """
        laid_out = [self._buffered(averages) for averages in self._averages]
        self._buffers, self._averages = [buffer for buffer, _ in laid_out], [views for _, views in laid_out]
        self._current = None
        if all(p.device.type == "cpu" and p.dtype == torch.float32 for p in self._parameters):
            self._current, views = self._buffered(self._parameters)
            for parameter, view in zip(self._parameters, views, strict=True):
                parameter.data = view
        self._places = [parameter.data_ptr() for parameter in self._parameters]

    def _buffered(self, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One fp32 buffer on the parameters' device, and its views with the values of `tensors`."""
        lengths = [-(-tensor.numel() // ALIGNMENT) * ALIGNMENT for tensor in tensors]
        buffer = torch.zeros(sum(lengths), device=self._parameters[0].device if self._parameters else None)
        views = []
        for part, tensor, parameter in zip(buffer.split(lengths), tensors, self._parameters, strict=True):
            dense = torch.empty_like(parameter, device="meta")  # the parameter's strides, without gaps
            views.append(part.as_strided(dense.shape, dense.stride(), part.storage_offset()).copy_(tensor))
        return buffer, views

    def averages_of(self, parameter: nn.Parameter) -> list[Tensor]:
        """The averages of one of the module's trainable parameters, themselves and not copies."""
        self.join()
        place = next(place for place, own in enumerate(self._parameters) if own is parameter)
        return [averages[place] for averages in self._averages]

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the block the module computes with the first average; the same values come back after it."""
        self.join()
        with self._copied_in() if self._sharded else self._pointed_to():
            yield

    @contextmanager
    def _pointed_to(self) -> Iterator[None]:
        held = [parameter.data for parameter in self._parameters]
        try:
            for parameter, average in zip(self._parameters, self._averages[0], strict=True):
                parameter.data = average.to(device=parameter.device, dtype=parameter.dtype)
            yield
        finally:
            for parameter, data in zip(self._parameters, held, strict=True):
                parameter.data = data

    @contextmanager
    def _copied_in(self) -> Iterator[None]:
        """Swap by copying the values: FSDP gathers weights from its own memory, not from a parameter's `data`."""
        own = self._rows([parameter.detach() for parameter in self._parameters])
        held = [rows.clone() for rows in own]
        try:
            torch._foreach_copy_(own, self._rows(self._averages[0]))
            yield
        finally:
            torch._foreach_copy_(own, held)

    def averages(self) -> dict[str, dict[str, Tensor]]:
        """kind -> the averages by the parameters' names."""
        self.join()
        return {
            kind: dict(zip(self._names, own, strict=True)) for kind, own in zip(self.kinds, self._averages, strict=True)
        }

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """kind -> the module's state dict with averages in the place of parameters."""
        return {kind: {**self.module.state_dict(), **own} for kind, own in self.averages().items()}

    def state_dict(self) -> dict[str, Any]:
        first, *further = self.averages().items()
        state = {"num_updates": self.num_updates, "averages": first[1]}
        return {**state, "further": dict(further)} if further else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from averages of the same kinds. Raises ValueError for those of others, or of other parameters."""
        self.join()
        stored = [state["averages"], *state.get("further", {}).values()]
        if list(state.get("further", {})) != list(self.kinds[1:]):
            raise UserError("the checkpoint's EMA has other profiles than this run's")
        if any(sorted(own) != sorted(self._names) for own in stored):
            raise UserError("the checkpoint's EMA is of other parameters than this model's")
        self.num_updates = state["num_updates"]
        self._averages = [
            [placed(own[name], p).clone().float() for name, p in zip(self._names, self._parameters, strict=True)]
            for own in stored
        ]
        self._places = []  # the buffers hold other averages now

    def start_from(self, state: dict[str, Any]) -> None:
        """Continue from another run's averages; where its kinds are others, all start from its first."""
        if list(state.get("further", {})) != list(self.kinds[1:]):
            first = state["averages"]
            state = {**state, "further": dict.fromkeys(self.kinds[1:], first)}
        self.load_state_dict(state)


class EMA(Averages):
    """Averages with the warm-up decay min(decay, (1 + n) / (10 + n)) in the n-th update, one for each `decay`.

    As published the first is the 1st: 2/11, 3/12, and so on. `beside_weights`: files of the published layout hold the
    first average beside the weights; false: in their place, as those of cin256-v2 and txt2img-1p4B do (convert).
    """

    def __init__(self, module: nn.Module, decay: float | list[float] = 0.9999, beside_weights: bool = True):
        self.decay = list(decay) if isinstance(decay, Sequence) else [decay]
        if not self.decay or not all(0 <= own < 1 for own in self.decay) or len(set(self.decay)) < len(self.decay):
            raise UserError(f"ema.decay={decay}: must be in [0, 1), or a list of different such numbers")
        super().__init__(module, ["ema", *[f"ema_{own:g}" for own in self.decay[1:]]])

    def decays(self, num_updates: int) -> Sequence[float]:
        return [min(own, (2 + num_updates) / (11 + num_updates)) for own in self.decay]

    def describe(self) -> dict[str, Any]:
        return {}


class PowerEMA(Averages):
    """Power-function averages: after t updates that of update i weighs i^gamma, where `sigma_rels` are their widths.

    A relative length sigma_rel is the standard deviation of the weights' places divided by t (EDM2, equation 123), so
    that the average grows with the training. Snapshots, every `snapshot_every_steps`, stay for later reconstruction.
    """

    def __init__(
        self, module: nn.Module, sigma_rels: Sequence[float] = (0.05, 0.10), snapshot_every_steps: int | None = 1000
    ):
        if not sigma_rels or len(set(sigma_rels)) < len(sigma_rels):
            raise UserError(f"ema.sigma_rels={list(sigma_rels)}: one or more different relative lengths")
        if snapshot_every_steps is not None and snapshot_every_steps < 1:
            raise UserError(f"ema.snapshot_every_steps={snapshot_every_steps}: must be at least 1, or null for none")
        self.sigma_rels = list(sigma_rels)
        self.snapshot_every_steps = snapshot_every_steps
        self._exponents = [exponent(sigma_rel) for sigma_rel in sigma_rels]
        super().__init__(module, ["ema", *[f"ema_{sigma_rel:g}" for sigma_rel in sigma_rels[1:]]])

    def decays(self, num_updates: int) -> Sequence[float]:
        return [(num_updates / (num_updates + 1)) ** (gamma + 1) for gamma in self._exponents]

    def describe(self) -> dict[str, Any]:
        lengths = dict(zip(self.kinds, self.sigma_rels, strict=True))
        return {"ema_profiles": {"num_updates": self.num_updates, "sigma_rels": lengths}}
