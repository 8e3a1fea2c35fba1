"""What a cascade was trained on, as whoever evaluates it or reads files for it sees that."""

import math
from collections.abc import Collection, Sequence
from typing import Any

from ldm.cascade.stage import LOW
from ldm.data.fields.low_resolution import LowResolution
from ldm.data.module import ShardData


def data_of(datas: Sequence[ShardData], factors: Sequence[int], fields: Collection[str] | None = None) -> ShardData:
    """The data of the last stage, with batches of whole images and the `fields` (None: all) of every stage.

    The small picture is that of the first stage that takes one: reduced by all of `factors`, whose stages enlarge it.
    """
    found: dict[str, Any] = {}
    for data in datas:
        found |= {name: field for name, field in {**data.keys.derived, **data.keys.read}.items()
                  if name != LOW and (fields is None or name in fields)}  # fmt: skip
    takers = [data.keys.derived.get(LOW) for data, factor in zip(datas, factors, strict=True) if factor > 1]
    if takers:
        small = LowResolution(math.prod(factors))
        small.degrades = takers[0] is None or takers[0].degrades  # what is known of the stage that takes it
        found[LOW] = small
    return datas[-1].whole().with_fields(found)
