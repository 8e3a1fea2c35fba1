"""What a conditioner is, and how several become the keywords of one network.

A conditioner turns fields of the batch into one slot: "vector" [B, V], "tokens" [B, N, D] with their mask, or
"concat" [B, K, h, w]. A dropped sample gets the conditioner's null. Draws are addressed by sample number.
"""

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from functools import cached_property
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from ldm.diffusion.draws import uniform
from ldm.errors import UserError

Batch = Mapping[str, Any]
SLOTS = ("vector", "tokens", "concat")


class FrozenEncoder(ABC):
    """What a conditioner asks first and never trains. Its answers for a batch may come with it, from a cache of them:
    batch["encoded"][`digest`], {part: [B, ...]}.
    """

    key: str  # the field of the batch that it reads

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What its answers depend on, in words and numbers; "weights" is a hash."""

    @abstractmethod
    def encode(self, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        """Its answers for a batch, {part: [B, ...]}, made on `device`."""

    @cached_property
    def digest(self) -> str:
        """Its identity in sixteen digits."""
        return sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Its identity, with its digest."""
        return {"digest": self.digest, **self.identity()}

    def known(self, batch: Batch) -> Mapping[str, Tensor] | None:
        """Its answers if they came with the batch."""
        return batch["encoded"].get(self.digest) if "encoded" in batch else None


class Conditioner(nn.Module, ABC):
    """Field `key` of a batch -> one slot of the network, `width` channels wide; dropped in training with `drop_prob`.

    Conditioners drop independently of each other, save those that name another in `drop_with`: same draw, both or none.
    """

    key: str
    also: tuple[str, ...] = ()  # fields that it reads where they are given
    instead: str | None = None  # the one of them that can stand for `key`
    reduces: int | None = None  # sides of the image over those of a slot "concat", where that is not the latent's
    optional = False  # whether who samples may leave its field out, and it is then dropped
    shares_first_stage = False  # whether published files hold the first stage a second time in its place
    frozen: FrozenEncoder | None = None

    def __init__(self, slot: str, width: int, drop_prob: float, drop_with: str | None = None):
        super().__init__()
        if slot not in SLOTS:
            raise UserError(f"conditioner slot {slot!r}: must be one of {', '.join(SLOTS)}")
        if not 0 <= drop_prob <= 1:
            raise UserError(f"conditioner drop_prob={drop_prob}: must lie in [0, 1]")
        self.slot = slot
        self.width = width
        self.drop_prob = drop_prob
        self.drop_with = drop_with

    @abstractmethod
    def forward(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        """{slot: tensor} for the batch, the null where drop [B] (bool); tokens may come with "tokens_mask" [B, N].

        A batch whose samples are all dropped need not hold the field.
        """

    def published_state(self) -> dict[str, Tensor]:
        """What published files hold of it, by their names below the conditioner's."""
        return self.state_dict()


class Conditioners(nn.Module):
    """Named conditioners merged by slot: vectors along the last dimension, tokens in length, concats along channels."""

    def __init__(self, conditioners: Mapping[str, Conditioner] | None = None):
        super().__init__()
        self.parts = nn.ModuleDict(conditioners)
        self.register_buffer("_where", torch.empty(0), persistent=False)  # follows .to(device)
        _check_widths({name: part for name, part in self.parts.items() if part.slot == "tokens"})

    def widths(self) -> dict[str, int]:
        """What the network must take: tokens_width, vector_width, concat_channels; 0 where there is none."""
        widths = {slot: [c.width for c in self.parts.values() if c.slot == slot] for slot in SLOTS}
        return {
            "tokens_width": max(widths["tokens"], default=0),
            "vector_width": sum(widths["vector"]),
            "concat_channels": sum(widths["concat"]),
        }

    def draw_drop(self, seed: int, numbers: Tensor) -> dict[str, Tensor]:
        """Which samples lose which condition, addressed by sample numbers [B] -> {name: bool [B]}."""
        return {
            name: uniform(seed, f"drop {conditioner.drop_with or name}", numbers)[:, 0] < conditioner.drop_prob
            for name, conditioner in self.parts.items()
        }

    @property
    def names(self) -> tuple[str, ...]:
        """What can be given or left out by itself, in order; one that drops with another goes by the other's name."""
        return tuple(dict.fromkeys(conditioner.drop_with or name for name, conditioner in self.parts.items()))

    def guidable(self, negative: Collection[str] = ()) -> tuple[str, ...]:
        """Those of `names` that a reference may lack: dropped in training, so that their null is known to the network,
        or with their field in `negative`, which then stands in its place.
        """
        fixed = {
            conditioner.drop_with or name
            for name, conditioner in self.parts.items()
            if not conditioner.drop_prob and conditioner.key not in negative
        }
        return tuple(name for name in self.names if name not in fixed)

    @property
    def fields(self) -> set[str]:
        """What is read of a batch."""
        return {field for conditioner in self.parts.values() for field in (conditioner.key, *conditioner.also)}

    def encoders(self) -> dict[str, FrozenEncoder]:
        """The frozen encoders of those that have one."""
        return {name: conditioner.frozen for name, conditioner in self.parts.items() if conditioner.frozen is not None}

    def absent(self, batch: Batch) -> set[str]:
        """The conditions that a batch may lack and does: optional ones, and beside a given one all with a null."""
        if "encoded" in batch:
            return set()  # of a cache: what that does not answer comes with its field
        lacking = {name for name, part in self.parts.items() if {part.key, part.instead}.isdisjoint(batch)}
        some_given = len(lacking) < len(self.parts)
        known = self.guidable()
        return {
            part.drop_with or name
            for name, part in self.parts.items()
            if name in lacking and (part.drop_with or name) in known and (part.optional or some_given)
        }

    def missing(self, batch: Batch) -> dict[str, str]:
        """Name and field of the conditions that a batch has to give and does not."""
        absent = self.absent(batch)
        return {
            name: part.key
            for name, part in self.parts.items()
            if {part.key, part.instead}.isdisjoint(batch) and (part.drop_with or name) not in absent
        }

    def drop_all_but(self, given: Collection[str], num_samples: int) -> dict[str, Tensor]:
        """Those of `names` that are in `given` kept, every other condition replaced by its null."""
        return {
            name: torch.full((num_samples,), (conditioner.drop_with or name) not in given, device=self._where.device)
            for name, conditioner in self.parts.items()
        }

    def drop_none(self, num_samples: int) -> dict[str, Tensor]:
        """Every condition kept."""
        return self.drop_all_but(self.names, num_samples)

    def drop_all(self, num_samples: int) -> dict[str, Tensor]:
        """Every condition replaced by its null."""
        return self.drop_all_but((), num_samples)

    def forward(self, batch: Batch, *, drop: Mapping[str, Tensor], negative: Batch | None = None) -> dict[str, Tensor]:
        """The network's keywords for a batch; `drop` as made by draw_drop or the methods beside it.

        A condition that is dropped for the whole batch takes its field of `negative`, where that has it, as its null.
        """
        parts: dict[str, list[Tensor]] = {}
        for name, conditioner in self.parts.items():
            if negative and conditioner.key in negative and drop[name].all():
                given = conditioner({**batch, "encoded": {}, **negative}, ~drop[name])
            else:
                given = conditioner(batch, drop[name])
            if conditioner.slot == "tokens":
                given = {"tokens_mask": _all_real(given["tokens"]), **given}
            for key, value in given.items():
                parts.setdefault(key, []).append(value)
        along = {"vector": -1, "tokens": 1, "tokens_mask": 1, "concat": 1}
        return {key: torch.cat(values, dim=along[key]) for key, values in parts.items()}


def _check_widths(parts: Mapping[str, Conditioner]) -> None:
    """Raises ValueError for tokens of different widths, naming the keys to set; that of a frozen encoder is fixed."""
    if len({part.width for part in parts.values()}) <= 1:
        return
    fixed = [part.width for part in parts.values() if part.frozen is not None]
    width = min(fixed or [part.width for part in parts.values()])
    free = [name for name, part in parts.items() if part.frozen is None and part.width != width]
    way_out = " ".join(f"conditioner.{name}.width={width}" for name in free) or "encoders of one width"
    named = ", ".join(f"{name} has {part.width}" for name, part in parts.items())
    raise UserError(
        f"conditioner: tokens are joined along their length and must be of equal width; {named}: choose {way_out}"
    )


def _all_real(tokens: Tensor) -> Tensor:
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


def field(batch: Batch, key: str, asked_by: str) -> Any:
    """A field of the batch. Raises ValueError naming the conditioner that asks for a missing one."""
    if key not in batch:
        raise UserError(f"conditioner {asked_by} needs {key!r} in every sample; the batch has {', '.join(batch)}")
    return batch[key]


class OutOfRange(UserError):
    """A value of a batch that its conditioner has no place for; `place` is the sample's in the batch."""

    def __init__(self, message: str, place: int):
        super().__init__(message)
        self.place = place


def check_classes(values: Tensor, num_classes: int, field: str, key: str) -> None:
    """Raise OutOfRange for class numbers [B, ...] that are not in [0, num_classes), which `key` says."""
    bad = ((values < 0) | (values >= num_classes)).flatten(1 if values.ndim > 1 else 0)
    if bool(bad.any()):
        place = int((bad.any(1) if values.ndim > 1 else bad).nonzero()[0, 0])
        raise OutOfRange(
            f"{field} {values.min().item()}..{values.max().item()}: {key}={num_classes} asks for 0..{num_classes - 1}",
            place,
        )


def check_network(network: nn.Module, conditioners: Conditioners) -> None:
    """Raise ValueError if the network's forward does not declare the keyword of a condition, naming both."""
    declared = inspect.signature(network.forward).parameters
    for name, conditioner in conditioners.parts.items():
        needed = [conditioner.slot, *(["tokens_mask"] if conditioner.slot == "tokens" else [])]
        missing = [key for key in needed if key not in declared]
        if missing:
            raise UserError(
                f"conditioner.{name} gives {' and '.join(missing)}, which network {type(network).__name__} "
                "does not take: leave the conditioner out or choose another network"
            )
