"""From what the user wrote (braces, globs, lists) to the shards' paths. Local files only; nothing is opened."""

import glob
from collections.abc import Sequence
from pathlib import Path

from braceexpand import braceexpand

from data.errors import ShardError

# Shipped data is named relative to the folder that holds this package, whatever the working directory is.
HOME = Path(__file__).resolve().parents[1]


def expand(shards: str | Sequence[str], key: str) -> list[Path]:
    """Existing paths in the order written; `key` is the configuration key that errors name."""
    patterns = [shards] if isinstance(shards, str) else list(shards)
    paths = [path for pattern in patterns for path in _expand_one(pattern, key)]
    if not paths:
        raise ShardError(f"{key} names no shards")
    seen: set[Path] = set()
    for path in paths:
        if path in seen:
            raise ShardError(f"{key} names {path} twice; each shard is read once per epoch")
        seen.add(path)
    return paths


def _expand_one(pattern: str, key: str) -> list[Path]:
    if pattern.startswith("pipe:"):
        raise ShardError(f"{key}: {pattern!r} would run a shell command; give paths of .tar files")
    if "://" in pattern:
        raise ShardError(f"{key}: {pattern!r} is a URL; only local paths are read, download the shards first")
    found = []
    for name in braceexpand(pattern, escape=False):
        matches = _matches(Path(name).expanduser())
        if not matches:
            raise ShardError(f"{key}: no shard {name} (from {pattern!r}, working directory {Path.cwd()})")
        folder = next((match for match in matches if match.is_dir()), None)
        if folder is not None:
            raise ShardError(f"{key}: {folder} is a folder; name its shards, such as {folder}/*.tar")
        found += matches
    return found


def _matches(path: Path) -> list[Path]:
    """The path itself or what it matches as a glob; a relative one may also start at the package's folder."""
    for candidate in [path] if path.is_absolute() else [path, HOME / path]:
        if candidate.exists():
            return [candidate.resolve()]
        matches = sorted(glob.glob(str(candidate)))
        if matches:
            return [Path(match).resolve() for match in matches]
    return []
