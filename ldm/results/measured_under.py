"""Under which settings a row was measured, as JSON: whether they are those that are asked for now."""

import json
from pathlib import Path
from typing import Any

from ldm.data.shards import ShardSet
from ldm.errors import UserError
from ldm.evaluation.stored_reference import facts_of

SHARDS, REFERENCE = "shards", "reference_content"
# What the training does not depend on.
MEASURING = ("moments", "num_samples", "num_steps", "sampling_steps", "metric", "held_out", "scale", SHARDS, REFERENCE)


def shards_of(folder: str | Path | None) -> dict[str, str]:
    """{SHARDS: what the train-*.tar and validation-*.tar of a folder hold, wherever it lies}; {} where there are none.

    It is their names and the SHA-256 that the manifest beside them lists, else those of their indices.
    """
    names = [] if folder is None else sorted(Path(folder).expanduser().glob("*.tar"))
    own = [path for path in names if path.name.startswith(("train-", "validation-"))]
    return {SHARDS: ShardSet.open(own).fingerprint()[:16]} if own else {}


def reference_of(given: Any) -> dict[str, str]:
    """{REFERENCE: what `reference=` names holds, wherever it lies}; {} where none is named, or it is not there."""
    try:
        return facts_of(given)
    except UserError:
        return {}


def training_of(settings: str | None) -> str | None:
    """Of a text of settings what the training depends on, and so how many steps a budget is; None for no such text."""
    try:
        own = {key: value for key, value in json.loads(settings or "").items() if key not in MEASURING}
    except (ValueError, AttributeError):
        return None
    return json.dumps(own, sort_keys=True)


def same_settings(one: Any, other: Any) -> bool:
    """Whether two texts of settings are the same. SHARDS and REFERENCE that only one of them says are passed over: rows
    are of before it was kept, or a page is made of rows alone, where the shards are not.
    """
    try:
        first, second = json.loads(one), json.loads(other)
        for facts, beside in ((first, second), (second, first)):
            for key in (SHARDS, REFERENCE):
                facts.setdefault(key, beside.get(key))
    except (TypeError, ValueError, AttributeError):
        return one == other
    return first == second
