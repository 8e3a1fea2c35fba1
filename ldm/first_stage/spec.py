"""LatentSpec: what a latent is, carried by everything that makes, stores or reads one."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from ldm.errors import UserError


@dataclass(frozen=True)
class LatentSpec:
    """Downsampling factor, channels, kind ("grid", "sequence" or "vector") and whitening of a latent space.

    `mean` and `std` are per channel, of what the regulariser gives; latents are stored and modelled as
    (z - mean) / std. `discrete`: tokens rather than real numbers. `fingerprint` names the weights that made it.
    """

    f: int
    channels: int
    kind: str
    discrete: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str

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
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The spec written by `to_dict`. Raises ValueError for missing or unknown names."""
        names = {field.name for field in fields(cls)}
        if not isinstance(plain, Mapping) or set(plain) != names:
            raise UserError(f"latent spec: expected the keys {sorted(names)}, got {plain!r:.300}")
        spec = cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()})
        kinds = {"f": int, "channels": int, "kind": str, "discrete": bool, "mean": tuple, "std": tuple}
        for name, kind in kinds.items():
            if type(getattr(spec, name)) is not kind:
                raise UserError(f"latent spec: {name} is {getattr(spec, name)!r}, expected {kind.__name__}")
        if not all(type(number) in (int, float) for number in (*spec.mean, *spec.std)):
            raise UserError("latent spec: mean and std are not all numbers")
        return spec
