"""Where the members of an ensemble are while it samples: all on the device, or one, and the others in their files.

The levels of noise that a sampler will ask for are known, and so is which member comes next: a thread can read its file
ahead. What is drawn is the same bit for bit. Frozen encoders are one for all members, and stay.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch

from ldm.errors import UserError
from ldm.model import Model
from ldm.networks.compiling import Compile, compile_network
from ldm.networks.layers import tuned
from ldm.networks.precision import Precision
from ldm.stored_model import Loaded, Stored


class Residency(Protocol):
    """Holds the members of one ensemble; numbers are theirs, in its order."""

    takes_turns: bool  # whether it matters how often one member is asked after another

    def hold(self, model: Model) -> Model:
        """The next member, as it is used."""

    def to(self, members: Sequence[Model], device: torch.device | str) -> None:
        """Evaluate on this device from now on."""

    def tuned(self, members: Sequence[Model], compile: Compile, precision: Precision = "fp32") -> None:
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

    def tuned(self, members: Sequence[Model], compile: Compile, precision: Precision = "fp32") -> None:
        for member in members:
            member.tuned(compile, precision)

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

    def tuned(self, members: Sequence[Model], compile: Compile, precision: Precision = "fp32") -> None:
        if compile == "graphs":
            raise UserError(f"residency={self._name}: compile=graphs holds the weights where they are")
        self._tuned = True
        for number, stored in enumerate(self._stored):
            compile_network(stored.network, compile, self._device)
            if stored.lower(precision, self._device) and number == self._inside:
                self._inside = None
        if self._inside is not None:
            tuned(self._stored[self._inside].network, self._device)

    def plan(self, numbers: Sequence[int]) -> None:
        if not numbers:
            return
        order = [number for number, before in zip(numbers, [None, *numbers], strict=False) if number != before]
        self._next = {}
        for number, after in [*pairwise(order), (order[-1], order[0])]:
            self._next.setdefault(number, after)

    def enter(self, number: int) -> None:
        if number == self._inside:
            return
        began = time.perf_counter()
        stored, state = self._stored[number], self._read(number)
        before, self._inside = self._inside, None  # nobody, should the next one not come
        if before is not None:
            self._stored[before].leave(self._device)
        stored.come(self._device, state)
        if self._tuned:
            tuned(stored.network, self._device)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        if before is not None:
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
            stored, on_gpu = self._stored[number], self._device.type == "cuda"
            read = partial(stored.pinned, self._device) if on_gpu else stored.cached
            self._reading = number, self._reader.submit(read)

    @property
    def facts(self) -> dict[str, Any]:
        found = {"residency": self._name, "switches": self._switches, "switch_seconds": round(self._seconds, 4)}
        return {**found, "peak_bytes": self._peak}


class Among:
    """Members of another ensemble, held as those of `whole` by their `numbers` there; None is one that always is there,
    as one that is being trained.
    """

    def __init__(self, whole: Residency, numbers: Sequence[int | None]):
        self._whole, self._numbers = whole, numbers
        self.takes_turns = whole.takes_turns

    def hold(self, model: Model) -> Model:
        return model

    def to(self, members: Sequence[Model], device: torch.device | str) -> None:
        self._whole.to(members, device)

    def tuned(self, members: Sequence[Model], compile: Compile, precision: Precision = "fp32") -> None:
        self._whole.tuned(members, compile, precision)

    def plan(self, numbers: Sequence[int]) -> None:
        found = (self._numbers[number] for number in numbers)
        self._whole.plan([number for number in found if number is not None])

    def enter(self, number: int) -> None:
        held = self._numbers[number]
        if held is not None:
            self._whole.enter(held)

    @property
    def facts(self) -> dict[str, Any]:
        return self._whole.facts


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
