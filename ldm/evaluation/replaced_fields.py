"""Fields of the batch that an evaluation has in the place of the run's own: other holes, other low resolutions."""

import logging
from collections.abc import Mapping
from typing import Any

from ldm.build import Parts
from ldm.data.fields import Derived
from ldm.data.module import ShardData
from ldm.drawer import Drawer
from ldm.errors import UserError
from ldm.sampling import Sampling

log = logging.getLogger(__name__)


def made_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``derived=`` of a `tree` with that group and a seed, by their keys of the batch."""
    return Parts(dict(tree))["derived"]


def with_fields_of(tree: Mapping[str, Any], data: ShardData, model: Drawer, sampling: Sampling) -> ShardData:
    """`data` with the fields of ``derived=`` of `tree`. Raises ValueError for one that `model` does not read.

    Says it of spoiled pictures for a model that was trained on clean ones alone.
    """
    if not tree["derived"]:
        return data
    made, fields = made_of(tree), set().union(*model.conditions(sampling).values())
    for name in made.keys() - fields:
        read = f"it reads {', '.join(sorted(fields))}" if fields else "it has no conditions"
        raise UserError(f"derived: {model.name} reads no {name}; {read}")
    for name, field in made.items():
        own = model.data.keys.derived.get(name)
        if isinstance(field, Derived) and field.degrades and own is not None and not own.degrades:
            log.warning(
                "derived: %s was trained on clean pictures alone (derived.%s=%s), and is given spoiled ones",
                model.name, name, type(own).__name__,
            )  # fmt: skip
    return data.with_fields(made)
