"""Names of classes in the order of their numbers, as make_shards.py notes them in the manifest beside the shards."""

from collections.abc import Sequence
from pathlib import Path

from ldm.data.bounded_json import load_json
from ldm.data.errors import ShardError
from ldm.data.paths import COMPOSED, expand, listed

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 26


def class_names(shards: str | Sequence[str] | None) -> list[str]:
    """The class names of `shards` (as in data.train); none if those are remote, gone, mixed, or have no manifest."""
    try:
        patterns = listed(shards, "data.train") if isinstance(shards, str) else list(shards or ())
        composed = [isinstance(pattern, str) and pattern.startswith(COMPOSED) for pattern in patterns]
        if any(composed):  # known without making them
            return _built_in() if all(composed) else []
        places = expand(shards, "data.train") if shards else []
    except ShardError:
        return []
    found = [_noted(folder / MANIFEST) for folder in {place.parent for place in places if isinstance(place, Path)}]
    return found[0] if len(found) == 1 else []


def _built_in() -> list[str]:
    from ldm.data.making import cutouts  # and with it scipy

    return cutouts.class_names()


def _noted(manifest: Path) -> list[str]:
    """The class names in a manifest, which is untrusted input; none if it does not list them."""
    if not manifest.is_file() or manifest.stat().st_size > MAX_MANIFEST_BYTES:
        return []
    try:
        content = load_json(manifest.read_bytes())
    except (ValueError, RecursionError):
        return []
    names = content.get("class_names") if isinstance(content, dict) else None
    valid = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if valid else []
