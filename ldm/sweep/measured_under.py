"""Under which settings a row was measured, as JSON: whether they are those that are asked for now."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ldm.data.shards import ShardSet

SHARDS = "shards"


def shards_of(folder: str | Path | None) -> dict[str, str]:
    """{SHARDS: what the train-*.tar and validation-*.tar of a folder hold, wherever it lies}; {} where there are none.

    It is their names and the SHA-256 that the manifest beside them lists, else those of their indices.
    """
    names = [] if folder is None else sorted(Path(folder).expanduser().glob("*.tar"))
    own = [path for path in names if path.name.startswith(("train-", "validation-"))]
    return {SHARDS: ShardSet.open(own).fingerprint()[:16]} if own else {}


def without(settings: str | None, keys: Collection[str]) -> str | None:
    """A text of settings without some of its `keys`; None for no such text."""
    try:
        own = {key: value for key, value in json.loads(settings or "").items() if key not in keys}
    except (ValueError, AttributeError):
        return None
    return json.dumps(own, sort_keys=True)


def same_settings(one: Any, other: Any) -> bool:
    """Whether two texts of settings are the same. SHARDS that only one of them says are passed over: rows are of before
    it was kept, or a page is made of rows alone, where the shards are not.
    """
    try:
        first, second = json.loads(one), json.loads(other)
        for facts, beside in ((first, second), (second, first)):
            facts.setdefault(SHARDS, beside.get(SHARDS))
    except (TypeError, ValueError, AttributeError):
        return one == other
    return first == second
