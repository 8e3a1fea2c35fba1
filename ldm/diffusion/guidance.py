"""Guidance: wraps `denoise(x, sigma) -> x0` together with what it is compared with into one guided `denoise`.

Classifier-free guidance (arXiv:2207.12598), jointly or with a scale for each condition, and autoguidance. The classes
hold the formulas, linear in D and so the same on noise, v or velocity; how much of them is taken is `Limits`' to say
(limits.py). Samplers never know of guidance.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoise
from ldm.diffusion.limits import Limits
from ldm.errors import UserError

MAX_SCALE = 1e38


@dataclass(frozen=True)
class Bound:
    """A denoiser bound to the conditions of a batch: all that guidance is made from.

    `denoise` has every condition given, and is guided by whatever comes before in the declared order. `given(names)` is
    the denoiser with only those of `conditions` given and for each other its negative or its null; not called, it costs
    nothing. `decode` takes a latent [B, C, h, w] to an image [B, 3, H, W] and can be differentiated.
    """

    denoise: Denoise
    given: Callable[[Collection[str]], Denoise]
    conditions: tuple[str, ...]
    batch: Mapping[str, Any]
    num_samples: int
    decode: Callable[[Tensor], Tensor]


class Guidance(Protocol):
    """What steers sampling: one method, called once for each batch."""

    def guide(self, bound: Bound) -> Denoise:
        """The guided form of `bound.denoise`."""


class FieldGuidance(Guidance, Protocol):
    """Guidance that reads `fields` of the batch itself."""

    fields: tuple[str, ...]


class ScaledGuidance(Guidance, Protocol):
    """Guidance that compares, by a scale that can be varied: 0 is what it compares with, 1 no guidance."""

    @property
    def scale(self) -> float | None:
        """Its scale; None where it has several that differ."""

    def left_out(self, conditions: Sequence[str]) -> frozenset[str]:
        """Those of `conditions`, all that may be left out, that a reference lacks.

        Raises ValueError if it has to leave out one that is not among them.
        """

    def among(self, conditions: Sequence[str]) -> "ScaledGuidance":
        """The same guidance for a model that has only these `conditions`; the others neither condition nor guide it."""

    def with_scale(self, scale: float) -> "ScaledGuidance":
        """The same guidance at another scale."""


class ClassifierFree:
    """D = D_u + scale (D_c - D_u) within `Limits`, D_c elsewhere; scale 0 is the reference D_u, 1 the identity.

    The reference is given no condition, each replaced by its null or its negative.
    """

    def __init__(self, scale: float, limits: Limits | None = None):
        self.scale = finite(scale, "guidance.scale")
        self.limits = limits or Limits()

    def __call__(self, denoise: Denoise, reference: Denoise) -> Denoise:
        """`denoise` with the condition and `reference` without it -> the guided one."""
        return _compare(denoise, reference, self.scale, self.limits)

    def left_out(self, conditions: Sequence[str]) -> frozenset[str]:
        """All, unless the scale is 1. Raises ValueError if there is none."""
        if self.scale == 1:
            return frozenset()
        if not conditions:
            raise UserError(
                f"guidance.scale={self.scale:g}: this model has no conditions to guide by; sample with guidance.scale=1"
            )
        return frozenset(conditions)

    def guide(self, bound: Bound) -> Denoise:
        """Away from no condition at all. Raises ValueError if there is none to leave out and the scale is not 1."""
        self.left_out(bound.conditions)
        return bound.denoise if self.scale == 1 else self(bound.denoise, bound.given(()))

    def among(self, conditions: Sequence[str]) -> "ClassifierFree":
        """None where there are no conditions."""
        return self if conditions else self.with_scale(1.0)

    def with_scale(self, scale: float) -> "ClassifierFree":
        """The same guidance at another scale."""
        other = copy(self)
        other.scale = finite(scale, "guidance.scale")
        return other


class PerCondition:
    """D(0) + s_1 (D(c_1) - D(0)) + s_2 (D(c_1, c_2) - D(c_1)) + ... for `scales` {c: s}, in their order.

    arXiv:2211.09800, equation 3, for any number of conditions; within `Limits`. Equal scales are joint classifier-free
    guidance. A condition that is not named is always given. The costs are one evaluation for each different scale, and
    one for all conditions.
    """

    def __init__(self, scales: Mapping[str, float], limits: Limits | None = None):
        if not scales:
            raise UserError("guidance.scales: names no condition, guidance.scales={text:3,label:1.5} names two")
        self.scales = {name: finite(scale, f"guidance.scales.{name}") for name, scale in scales.items()}
        self.limits = limits or Limits()

    @property
    def scale(self) -> float | None:
        """That of all its conditions; None where they differ."""
        scales = set(self.scales.values())
        return scales.pop() if len(scales) == 1 else None

    def left_out(self, conditions: Sequence[str]) -> frozenset[str]:
        """Those whose scale is not that of all before it. Raises ValueError naming one that is not in `conditions`."""
        unknown = [name for name in self.scales if name not in conditions]
        if unknown:
            known = ", ".join(conditions) or "none"
            raise UserError(
                f"guidance.scales: no condition {', '.join(unknown)}; the conditions of this model: {known}"
            )
        lacking = [list(self.scales)[k:] for k, factor in enumerate(self._factors()) if factor != 0]
        return frozenset(lacking[0] if lacking else ())

    def _factors(self) -> list[float]:
        """The factors of the terms D(c_1 ... c_k), which are s_k - s_(k+1) with s_0 = 1."""
        return [before - after for before, after in pairwise([1.0, *self.scales.values()])]

    def guide(self, bound: Bound) -> Denoise:
        """Condition after condition. Raises ValueError naming a condition that the model does not have."""
        self.left_out(bound.conditions)
        names = list(self.scales)
        always = [name for name in bound.conditions if name not in self.scales]
        terms = [(f, bound.given([*always, *names[:k]])) for k, f in enumerate(self._factors()) if f != 0]
        if not terms:
            return bound.denoise

        def guided(x: Tensor, sigma: Tensor, conditional: Tensor) -> Tensor:
            return conditional + sum(factor * (denoise(x, sigma) - conditional) for factor, denoise in terms)

        return self.limits.apply(bound.denoise, guided)

    def among(self, conditions: Sequence[str]) -> "PerCondition":
        """By the scales of these conditions."""
        other = copy(self)
        other.scales = {name: scale for name, scale in self.scales.items() if name in conditions}
        return other

    def with_scale(self, scale: float) -> "PerCondition":
        """The same guidance with all its scales equal."""
        other = copy(self)
        other.scales = dict.fromkeys(self.scales, finite(scale, "guidance.scale"))
        return other


class Autoguidance:
    """D = D_weak + scale (D - D_weak) within `Limits`: against a worse model, all conditions given (arXiv:2406.02507).

    `weak_model` gives the worse model's denoiser for what is bound.
    """

    def __init__(self, scale: float, weak_model: Callable[[Bound], Denoise], limits: Limits | None = None):
        self.scale = finite(scale, "guidance.scale")
        self.weak_model = weak_model
        self.limits = limits or Limits()

    def left_out(self, conditions: Sequence[str]) -> frozenset[str]:
        """No condition: the worse model is given the same ones."""
        return frozenset()

    def guide(self, bound: Bound) -> Denoise:
        """Away from what the worse model gives."""
        return _compare(bound.denoise, self.weak_model(bound), self.scale, self.limits)

    def among(self, conditions: Sequence[str]) -> "Autoguidance":
        """Itself: it does not depend on conditions."""
        return self

    def with_scale(self, scale: float) -> "Autoguidance":
        """The same guidance at another scale."""
        other = copy(self)
        other.scale = finite(scale, "guidance.scale")
        return other


def _compare(denoise: Denoise, reference: Denoise, scale: float, limits: Limits) -> Denoise:
    """reference + scale (denoise - reference), evaluating neither where its factor is 0."""
    if scale == 1:
        return denoise
    if scale == 0 and limits.whole:
        return limits.within(denoise, reference)

    def guided(x: Tensor, sigma: Tensor, conditional: Tensor) -> Tensor:
        return torch.lerp(reference(x, sigma), conditional, scale)

    return limits.apply(denoise, guided)


def finite(scale: float, name: str) -> float:
    """`scale` itself. Raises ValueError naming it if it, or the difference of two such, is not finite in fp32."""
    if not abs(scale) <= MAX_SCALE:
        raise UserError(f"{name}: must be finite and below {MAX_SCALE:g}, got {scale:g}")
    return scale
