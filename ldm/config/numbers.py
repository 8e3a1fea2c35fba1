"""Numbers of a composed tree that its types do not bound."""

import math
from collections.abc import Mapping
from typing import Any

from ldm.errors import UserError


def check_least(tree: Mapping[str, Any], least: Mapping[str, float]) -> None:
    """Raises UserError for a key of `tree` below its `least` value."""
    for key, value in least.items():
        if tree[key] < value:
            raise UserError(f"{key}={tree[key]}: must be at least {value}")


def check_above_zero(tree: Mapping[str, Any], *keys: str) -> None:
    """Raises UserError for a key of `tree` that is not a number above 0."""
    for key in keys:
        if not 0 < tree[key] < math.inf:
            raise UserError(f"{key}={tree[key]}: must be above 0, and a number")


def check_guidance(tree: Mapping[str, Any]) -> None:
    """Raises UserError for a `scale` of guidance that nothing can be drawn with."""
    if not math.isfinite(tree["scale"]):
        raise UserError(f"scale={tree['scale']}: of guidance, must be a number")


def check_seeds(tree: Mapping[str, Any], key: str = "seeds") -> None:
    """Raises UserError for what is no list of different seeds."""
    seeds = tree[key]
    known = all(type(seed) is int and 0 <= seed < 1 << 32 for seed in seeds)
    if not seeds or not known or len(set(seeds)) < len(seeds):
        raise UserError(f"{key}={seeds}: a list of different numbers from 0 to {(1 << 32) - 1}")
