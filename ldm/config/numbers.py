"""Numbers of a composed tree that its types do not bound."""

from collections.abc import Mapping
from typing import Any

from ldm.errors import UserError


def check_least(tree: Mapping[str, Any], least: Mapping[str, float]) -> None:
    """Raises UserError for a key of `tree` below its `least` value."""
    for key, value in least.items():
        if tree[key] < value:
            raise UserError(f"{key}={tree[key]}: must be at least {value}")


def check_seeds(tree: Mapping[str, Any], key: str = "seeds") -> None:
    """Raises UserError for what is no list of different seeds."""
    seeds = tree[key]
    if not seeds or any(type(seed) is not int or seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"{key}={seeds}: a list of different numbers from 0 on")
