"""Whether a run's data is unchanged: by the digest of the shards' headers in the lineage, not by their paths."""

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from ldm.data.layout import Stopped, layout, repaired, stopped_by
from ldm.data.module import ShardData
from ldm.errors import UserError

# Keys that only say where data lies -> the entry of the lineage that says what it is. A run that has no such entry yet,
# because it was begun by older code, may not change the key.
PLACES = {
    r"data\.train": "train_layout",
    r"data\.mixture\..+\.shards": "train_layout",
    r"data\.validation": "validation_layout",
    r"data\.filters\.exclude": "train_kept",
    r"data\.cache": "cache_made",
}
KEYS = {
    "train_layout": "data.train",
    "train_sets": "data.mixture",
    "validation_layout": "data.validation",
    "train_kept": "data.filters",
    "cache_made": "data.cache",
}
# What a cache was made with; encode.py may have added to the rest since.
MADE = ("image_size", "crop", "decoder", "first_stage", "encoders", "precision", "codes", "flips")


def with_saved_places(tree: dict[str, Any], saved: Any, lineage: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with the saved spelling of places whose content `check_data` will hold against the lineage."""

    def merged(now: Any, before: Any, key: str) -> Any:
        if isinstance(now, dict) and isinstance(before, dict):
            return {
                name: merged(value, before.get(name), f"{key}.{name}" if key else name) for name, value in now.items()
            }
        known = any(re.fullmatch(place, key) and entry in lineage for place, entry in PLACES.items())
        return before if known and now is not None and before is not None else now

    return merged(tree, saved, "")


def check_data(lineage: dict[str, Any], folder: Path, data: ShardData) -> list[str]:
    """Record the data in the lineage; returns the names of shards repaired since their bad samples stopped the run.

    Raises ValueError if it is not the data that the run has seen so far, whatever the names.
    """
    found = []
    stopped = lineage.get("stopped_by", {})
    for entry, now in _identities(data).items():
        if lineage.setdefault(entry, now) == now:
            continue
        names = _repairs(data, entry, lineage[entry], stopped)
        if names is None:
            raise UserError(
                f"{KEYS[entry]}: {_difference(entry)} than when the run in {folder} began, so it cannot be resumed "
                "exactly: put the old ones back, train on with the new ones under branch= and another run=, or start "
                "anew with overwrite=true"
            )
        lineage[entry] = now
        found += names
    if found:
        lineage["repaired"] = [*lineage.get("repaired", []), *found]
    lineage.pop("stopped_by", None)
    return found


def bad_shards(data: ShardData) -> dict[str, Stopped]:
    """What the lineage records of the shards with bad samples, to recognise them once they have been repaired."""
    rows = {"train_layout": data.skipped_in_training, "validation_layout": data.skipped_in_validation}
    parts = dict(zip(rows, data.parts(), strict=False))
    return {
        entry: stopped_by(part.shards, (row["index"] for row in rows[entry]))
        for entry, part in parts.items()
        if rows[entry]
    }


def _identities(data: ShardData) -> dict[str, str]:
    names = ("train_layout", "validation_layout")
    found = {name: layout(part.shards) for name, part in zip(names, data.parts(), strict=False)}
    if data.training_set.mixture:  # the same shards in other sets have the same layout
        found["train_sets"] = " ".join(map(str, data.training_set.starts))
    kept = data.parts()[0].shards.kept
    if kept is not None:
        found["train_kept"] = kept.digest
    if data.cache is not None:
        facts = json.dumps({name: data.cache_made.get(name) for name in MADE}, sort_keys=True)
        found["cache_made"] = sha256(facts.encode()).hexdigest()
    return found


def _repairs(data: ShardData, entry: str, known: str, stopped: Mapping[str, Stopped]) -> list[str] | None:
    part = dict(zip(("train_layout", "validation_layout"), data.parts(), strict=False)).get(entry)
    return None if part is None or entry not in stopped else repaired(part.shards, known, stopped[entry])


def _difference(entry: str) -> str:
    return {
        "train_sets": "its sets begin at other samples (a shard is in another one)",
        "train_kept": "other samples pass the filters (another list to exclude, other json)",
        "cache_made": "the cache was made with something else",
    }.get(entry, "the shards' members have other names, sizes or places")
