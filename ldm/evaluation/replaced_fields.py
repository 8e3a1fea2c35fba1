"""Fields of the batch that an evaluation has in the place of the run's own: other holes, other low resolutions."""

from collections.abc import Mapping
from typing import Any

from ldm.build import Parts
from ldm.data.module import ShardData
from ldm.drawer import Drawer
from ldm.errors import UserError


def made_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``derived=`` of a `tree` with that group and a seed, by their keys of the batch."""
    return Parts(dict(tree))["derived"]


def with_fields_of(tree: Mapping[str, Any], data: ShardData, model: Drawer) -> ShardData:
    """`data` with the fields of ``derived=`` of `tree`. Raises ValueError for one that `model` does not read."""
    if not tree["derived"]:
        return data
    made = made_of(tree)
    for name in made.keys() - model.fields:
        read = f"it reads {', '.join(sorted(model.fields))}" if model.fields else "it has no conditions"
        raise UserError(f"derived: {model.name} reads no {name}; {read}")
    return data.with_fields(made)
