"""The manifest of a set of shards: what is in them, what was left out, and how they were made.

It also guards a folder: finished shards are never replaced by others, for a training may be reading them.
"""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from ldm.data.making.settings import Settings
from ldm.data.making.sources import LeftOut, Source, Sources
from ldm.data.user_error import UserError
from ldm.data.writing import MANIFEST, sha256_of

SPLITS = ("train", "validation")
NUM_REASONS = 3
# Written where they are not as they were before.
ADDED = {"members": "", "num_classes": 0, "unlabelled": -1, "min_area": 0.0, "min_objects": 0, "max_objects": 0}
MADE_WITH = ("size", "quality", "validation", "shard_samples", "image_column", "caption_column")


def summarise(notes: list[dict[str, Any]], settings: Settings, found: Sources) -> dict[str, Any]:
    """The manifest, from what `make_shard` noted of each shard."""
    splits = {}
    for part in SPLITS:
        rows = [note["row"] for note in notes if note["shard"].startswith(f"{part}-") and note["row"]["samples"]]
        splits[part] = {"samples": sum(row["samples"] for row in rows), "shards": rows}
    skipped = [row._asdict() for row in found.left_out] + [row for note in notes for row in note["skipped"]]
    fields: Counter[str] = sum((Counter(note["fields"]) for note in notes), Counter())
    return {
        "name": settings.source.resolve().name,
        "samples": sum(facts["samples"] for facts in splits.values()),
        "fields": dict(sorted(fields.items())),
        "class_names": found.class_names,
        "splits": splits,
        "notes": found.notes,
        "num_skipped": dict(sorted(Counter(row["kind"] for row in skipped).items())),
        "skipped": skipped,
        "made_with": made_with(settings, found.sources),
    }


def made_with(settings: Settings, sources: list[Source]) -> dict[str, Any]:
    """What two runs have in common if they make the same shards: the names of the images and the settings."""
    added = {key: getattr(settings, key) for key in ADDED}
    beside = {key: value for key, value in added.items() if value != ADDED[key]}  # older manifests lack them
    return {"images": names_digest(sources)} | {key: getattr(settings, key) for key in MADE_WITH} | beside


def names_digest(sources: list[Source]) -> str:
    """A digest of the images' names, wherever they lie and whatever is in them."""
    return hashlib.sha256("".join(sorted(source.rank for source in sources)).encode()).hexdigest()[:16]


def nothing_usable(left_out: list[LeftOut], settings: Settings) -> ValueError:
    """The error for a source of which no image goes into a shard, with the first reasons."""
    first = "; ".join(f"{row.name}: {row.reason} ({row.kind})" for row in left_out[:NUM_REASONS])
    more = f"; and {len(left_out) - NUM_REASONS} more" if len(left_out) > NUM_REASONS else ""
    return UserError(f"source={settings.source}: none of the {len(left_out)} images can be used: {first}{more}")


# -- the folder ----------------------------------------------------------------------------------------------------


def read_finished(settings: Settings, plan: dict[str, list[Source]], sources: list[Source]) -> dict[str, Any] | None:
    """The rows, by shard, of the finished run in `out`, which this one will confirm; None if none is finished.

    ValueError where the folder holds shards that this run does not make.
    """
    out = settings.out
    strangers = sorted(path.name for path in out.glob("*.tar") if path.name not in plan)
    if strangers:
        raise UserError(
            f"out={out} already holds {strangers[0]}, which is not of this run; delete it or choose another"
        )
    if not (out / MANIFEST).exists():
        return None
    try:
        there = json.loads((out / MANIFEST).read_bytes())
        listed = [row for part in SPLITS for row in there["splits"][part]["shards"]]
        rows = {row["name"]: {"samples": row["samples"], "sha256": row["sha256"]} for row in listed}
        stated = dict(there.get("made_with", {}))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"out={out} holds a {MANIFEST} that is none of shards; choose another folder") from None
    for key, value in made_with(settings, sources).items():
        before = stated.get(key, value)  # older manifests lack it; the shards' bytes are compared instead
        if before != value:
            what = "of other images" if key == "images" else f"made with {key}={before}, this run has {key}={value}"
            raise UserError(f"out={out} holds finished shards {what}; choose another folder, or delete it")
    return {name: rows.get(name, {"samples": 0}) for name in plan}


def rows_there(out: Path, counts: dict[str, int]) -> dict[str, dict[str, Any]]:
    """The rows of shards in `out` that this run has to make the same: of its manifest, or those that lie there.

    Raises UserError for a shard that is not among the `counts` of its samples, and for a manifest of other shards.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"out={out} is a file; name a folder")
    strangers = sorted(path.name for path in out.glob("*.tar") if path.name not in counts)
    if strangers:
        raise UserError(f"out={out} already holds {strangers[0]}; delete it or choose another folder")
    if not (out / MANIFEST).exists():  # killed before: a shard under its name is whole, and its bytes are known
        present = [shard for shard in counts if (out / shard).exists()]
        return {shard: {"samples": counts[shard], "sha256": sha256_of(out / shard)} for shard in present}
    try:
        splits = json.loads((out / MANIFEST).read_bytes())["splits"]
        listed = [row for name in SPLITS for row in splits[name]["shards"]]
        rows = {row["name"]: {"samples": row["samples"], "sha256": row["sha256"]} for row in listed}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"out={out} holds a {MANIFEST} that is none of shards; choose another folder") from None
    if {name: row["samples"] for name, row in rows.items()} != counts:
        raise UserError(f"out={out} holds a {MANIFEST} of other shards; delete the folder or choose another")
    return rows
