"""LatentSpec: what a latent is, carried by everything that makes, stores or reads one."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from torch import Tensor

from ldm.errors import UserError

# The keys that `from_dict` takes, with their types.
KINDS = {"f": int, "channels": int, "kind": str, "discrete": bool, "mean": tuple, "std": tuple, "fingerprint": str,
         "length": int, "groups": tuple}  # fmt: skip


NUM_DIMENSIONS = {"vector": 1, "sequence": 2, "grid": 3}  # of one latent of a kind


@dataclass(frozen=True)
class LatentSpec:
    """Shape and whitening of a latent space.

    A latent is by `kind` a "vector" [channels], a "sequence" [channels, length], or a "grid" [channels, h, w] of the
    image's sides over `f` (1 for the others). A sequence may join the positions of several grids, as of a pyramid:
    `groups` are their sides [h, w], in order. `mean` and `std` are per channel, of what the regulariser gives; latents
    are stored and modelled as (z - mean) / std. `discrete`: tokens rather than real numbers. `fingerprint` names the
    weights that made it. Raises ValueError for a kind, a length and groups that do not go together.
    """

    f: int
    channels: int
    kind: str
    discrete: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    length: int = 0
    groups: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in NUM_DIMENSIONS:
            raise UserError(f"latent spec: kind {self.kind!r}, must be one of {', '.join(NUM_DIMENSIONS)}")
        if (self.length > 0) != (self.kind == "sequence"):
            raise UserError(f"latent spec: a {self.kind} of length {self.length}; only a sequence has one")
        if self.groups and sum(height * width for height, width in self.groups) != self.length:
            raise UserError(f"latent spec: groups {self.groups} do not add up to length {self.length}")

    def shape(self, sides: Sequence[int]) -> tuple[int, ...]:
        """Of one latent; `sides` [h, w] are those of a grid, the others have their own."""
        return {
            "vector": (self.channels,),
            "sequence": (self.channels, self.length),
            "grid": (self.channels, *sides),
        }[self.kind]

    def per_channel(self, values: Tensor) -> Tensor:
        """values [channels], such as the mean, as they meet latents [B, ...]."""
        return values.view(self.channels, *[1] * (NUM_DIMENSIONS[self.kind] - 1))

    def check(self, other: "LatentSpec") -> None:
        """Raise ValueError naming what differs, if `other` is not this latent space."""
        differing = [
            f"{field.name} is {getattr(other, field.name)!r} where {getattr(self, field.name)!r} is needed"
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]
        if differing:
            raise UserError("first_stage: not the latent space this was made with: " + "; ".join(differing))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, as JSON stores them; `from_dict` is the inverse, exactly."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {**plain, "groups": [list(sides) for sides in self.groups]}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The spec written by `to_dict`, with or without lengths. Raises ValueError for missing or unknown names."""
        names = {field.name for field in fields(cls)}
        if not isinstance(plain, Mapping) or not names - {"length", "groups"} <= set(plain) <= names:
            raise UserError(f"latent spec: expected the keys {sorted(names)}, got {plain!r:.300}")
        values = {name: _tuples(value) for name, value in plain.items()}
        for name, kind in KINDS.items():
            if name in values and type(values[name]) is not kind:
                raise UserError(f"latent spec: {name} is {values[name]!r}, expected {kind.__name__}")
        if not all(type(number) in (int, float) for number in (*values["mean"], *values["std"])):
            raise UserError("latent spec: mean and std are not all numbers")
        for sides in values.get("groups", ()):
            if type(sides) is not tuple or len(sides) != 2 or not all(type(side) is int for side in sides):
                raise UserError(f"latent spec: groups {values['groups']!r} are not all [h, w]")
        return cls(**values)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
