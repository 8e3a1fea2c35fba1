"""Where the members of an ensemble are while it samples: all on the device, or one, and the others in their files.

The levels of noise that a sampler will ask for are known, and so is which member comes next: a thread can read its file
ahead. What is drawn is the same bit for bit. Frozen encoders are one for all members, and stay.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ldm.checkpoint.pieces import pieces
from ldm.device import give_memory_back
from ldm.errors import UserError
from ldm.model import Model
from ldm.networks.layers import tuned

BLOCK = 1 << 24  # bytes that are read ahead at a time
Loaded = dict[str, Tensor]


class Residency(Protocol):
    """Holds the members of one ensemble; numbers are theirs, in its order."""

    takes_turns: bool  # whether it matters how often one member is asked after another

    def hold(self, model: Model) -> Model:
        """The next member, as it is used."""

    def to(self, members: Sequence[Model], device: torch.device | str) -> None:
        """Evaluate on this device from now on."""

    def tuned(self, members: Sequence[Model], compile: bool) -> None:
        """See layers.tuned."""

    def plan(self, numbers: Sequence[int]) -> None:
        """Which members will be asked, evaluation after evaluation."""

    def enter(self, number: int) -> None:
        """Called before each evaluation of a member: it is on the device afterwards."""

    @property
    def facts(self) -> dict[str, Any]:
        """What it took so far: members on the device, switches between them, their seconds, bytes of members at most;
        {} where nothing moves.
        """


class AllResident:
    """All members are on the device."""

    takes_turns = False
    facts: dict[str, Any] = {}  # noqa: RUF012  # never changed

    def hold(self, model: Model) -> Model:
        return model

    def to(self, members: Sequence[Model], device: torch.device | str) -> None:
        for member in members:
            member.to(device)

    def tuned(self, members: Sequence[Model], compile: bool) -> None:
        for member in members:
            member.tuned(compile)

    def plan(self, numbers: Sequence[int]) -> None:
        pass

    def enter(self, number: int) -> None:
        pass


class OneResident:
    """One member is on the device, and gives up its memory before the next one takes it.

    With `ahead` the next one's file is read by a thread meanwhile: for a GPU into pinned memory, for a CPU into the
    system's cache of files, so that no second member is in the memory of either.
    """

    takes_turns = True

    def __init__(self, name: str, ahead: bool):
        self._name, self._ahead = name, ahead
        self._stored: list[Stored] = []
        self._device, self._tuned = torch.device("cpu"), False
        self._inside: int | None = None
        self._next: dict[int, int] = {}
        self._reader = ThreadPoolExecutor(1, "read ahead")
        self._reading: tuple[int, Future[Loaded | None]] | None = None
        self._switches, self._seconds, self._peak = 0, 0.0, 0

    def hold(self, model: Model) -> Model:
        self._stored.append(Stored(model))
        return self._stored[-1].model

    def to(self, members: Sequence[Model], device: torch.device | str) -> None:
        self._device, self._inside = torch.device(device), None
        for stored in self._stored:
            stored.leave(self._device)

    def tuned(self, members: Sequence[Model], compile: bool) -> None:
        self._tuned = True
        for stored in self._stored if compile else ():
            stored.network.compile()

    def plan(self, numbers: Sequence[int]) -> None:
        order = [number for number, before in zip(numbers, [None, *numbers], strict=False) if number != before]
        self._next = {}
        for number, after in [*pairwise(order), (order[-1], order[0])]:
            self._next.setdefault(number, after)

    def enter(self, number: int) -> None:
        if number == self._inside:
            return
        began = time.perf_counter()
        stored, state = self._stored[number], self._read(number)
        if self._inside is not None:
            self._stored[self._inside].leave(self._device)
        stored.come(self._device, state)
        if self._tuned:
            tuned(stored.network, self._device)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        if self._inside is not None:
            self._switches += 1
            self._seconds += time.perf_counter() - began
        self._inside = number
        self._peak = max(self._peak, sum(each.nbytes for each in self._stored))
        self._read_ahead(self._next.get(number, number))

    def _read(self, number: int) -> Loaded | None:
        """What was read ahead of a member, once it is there."""
        reading, self._reading = self._reading, None
        if reading is None:
            return None
        found = reading[1].result()
        return found if reading[0] == number else None

    def _read_ahead(self, number: int) -> None:
        if self._ahead and number != self._inside:
            stored, pinned = self._stored[number], self._device.type == "cuda"
            self._reading = number, self._reader.submit(stored.pinned if pinned else stored.cached)

    @property
    def facts(self) -> dict[str, Any]:
        found = {"residency": self._name, "switches": self._switches, "switch_seconds": round(self._seconds, 4)}
        return {**found, "peak_bytes": self._peak}


class Stored:
    """A model whose weights come into it from their file and go again; meanwhile they are NaN, of no memory."""

    def __init__(self, model: Model):
        self.network = model.denoiser.network
        self._model = nn.ModuleDict({"denoiser": model.denoiser, "conditioner": model.conditioner})
        named = nn.ModuleDict({"network": self.network, "conditioner": model.conditioner})
        self._own = named.state_dict(keep_vars=True)
        self._weights = replace(model.weights[0], state={})
        self._seen = _stamp(self._weights.path)
        self.nbytes = 0
        self.leave(torch.device("cpu"))
        shapes = {name: tensor.detach() for name, tensor in self._own.items()}
        self.model = replace(model, weights=[replace(self._weights, state=shapes)])

    def leave(self, device: torch.device) -> None:
        """Give up the memory of the weights. All else is on `device`."""
        kinds = {tensor.dtype for tensor in self._own.values()}
        nothing = {kind: _nothing(kind, device) for kind in kinds}
        for tensor in self._own.values():
            tensor.data = nothing[tensor.dtype].expand(tensor.shape)
        stored = {id(tensor) for tensor in self._own.values()}
        for tensor in (*self._model.parameters(), *self._model.buffers()):
            if id(tensor) not in stored:
                tensor.data = tensor.data.to(device)
        self.nbytes = 0
        give_memory_back()

    def come(self, device: torch.device, state: Loaded | None) -> None:
        """Take the weights, from `state` or else from their file. Raises UserError if that was changed."""
        self._check()
        for name, tensor in state.items() if state else pieces(self._weights):
            own = self._own[name]
            own.data = tensor.to(device, own.dtype, non_blocking=True, copy=True)
        self.nbytes = sum(tensor.nbytes for tensor in self._own.values())

    def pinned(self) -> Loaded:
        """The weights in memory that a GPU copies from by itself."""
        self._check()
        return {name: tensor.pin_memory() for name, tensor in pieces(self._weights)}

    def cached(self) -> None:
        """Have the system read the file into its cache."""
        block = bytearray(BLOCK)
        with self._weights.path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass

    def _check(self) -> None:
        if _stamp(self._weights.path) != self._seen:
            raise UserError(f"{self._weights.path}: was changed since the ensemble was loaded; load it again")


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _nothing(dtype: torch.dtype, device: torch.device) -> Tensor:
    """NaN, so that what is evaluated without its weights is seen; 0 of what has no NaN."""
    return torch.full((), torch.nan if dtype.is_floating_point or dtype.is_complex else 0, dtype=dtype, device=device)


# What `residency` may say, of sample.py, evaluate.py and a manifest.
RESIDENCIES: dict[str, Callable[[], Residency]] = {
    "all": AllResident,
    "one": partial(OneResident, "one", ahead=True),
    "disk": partial(OneResident, "disk", ahead=False),
}


def residency_of(name: str | None, key: str = "residency") -> Residency:
    """The one that is called `name`, None being all. Raises UserError for a name that there is not."""
    if name is not None and name not in RESIDENCIES:
        raise UserError(f"{key}={name}: there are {', '.join(RESIDENCIES)}")
    return RESIDENCIES[name or "all"]()


def words_of(facts: dict[str, Any]) -> str:
    """What `Residency.facts` has, for a line of progress; "" where nothing moved."""
    if not facts:
        return ""
    count = facts["switches"]
    return f"{count} switch{'' if count == 1 else 'es'} of experts in {facts['switch_seconds']:.2f} s"
