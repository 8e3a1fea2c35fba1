"""From what the user wrote (braces, globs, lists) to the shards' places: local paths, or URLs of remote objects.

Names that are written out are not asked for here: a remote shard that is missing is found when its headers are read.
"""

import glob
from collections.abc import Sequence
from pathlib import Path

from braceexpand import braceexpand

from data.addresses import check_complete
from data.errors import ShardError
from data.storage import SCHEMES, Location, Url, matching

# Shipped data is named relative to the folder that holds this package, whatever the working directory is.
HOME = Path(__file__).resolve().parents[1]


def expand(shards: str | Sequence[str], key: str) -> list[Location]:
    """Places of shards in the order written, local ones existing; `key` is the configuration key that errors name."""
    patterns = [shards] if isinstance(shards, str) else list(shards)
    paths = [path for pattern in patterns for path in _expand_one(pattern, key)]
    if not paths:
        raise ShardError(f"{key} names no shards")
    seen: set[Location] = set()
    for path in paths:
        if path in seen:
            raise ShardError(f"{key} names {path} twice; each shard is read once per epoch")
        seen.add(path)
    return paths


def _expand_one(pattern: str, key: str) -> list[Location]:
    if pattern.startswith("pipe:"):
        raise ShardError(f"{key}: {pattern!r} would run a shell command; give paths of .tar files")
    check_complete(pattern, key)
    is_url = "://" in pattern or "::" in pattern
    found: list[Location] = []
    for name in braceexpand(pattern, escape=False):
        matches = _remote_matches(name, key) if is_url else _local_matches(Path(name).expanduser())
        if not matches:
            where = "" if is_url else f", working directory {Path.cwd()}"
            raise ShardError(f"{key}: no shard {name} (from {pattern!r}{where})")
        folder = next((match for match in matches if isinstance(match, Path) and match.is_dir()), None)
        if folder is not None:
            raise ShardError(f"{key}: {folder} is a folder; name its shards, such as {folder}/*.tar")
        found += matches
    return found


def _local_matches(path: Path) -> list[Path]:
    """The path itself or what it matches as a glob; a relative one may also start at the package's folder."""
    for candidate in [path] if path.is_absolute() else [path, HOME / path]:
        if candidate.exists():
            return [candidate.resolve()]
        matches = sorted(glob.glob(str(candidate)))
        if matches:
            return [Path(match).resolve() for match in matches]
    return []


def _remote_matches(name: str, key: str) -> list[Url]:
    """The object itself, or what its name matches as a glob. A question mark in a web address begins a query."""
    scheme, _, place = name.partition("://")
    if scheme not in SCHEMES or "::" in place:
        raise ShardError(f"{key}: {name!r} is not read; URLs begin with {', '.join(f'{s}://' for s in SCHEMES)}")
    wild = "*[" if scheme in ("http", "https") else "*?["
    return matching(Url(name)) if any(letter in name for letter in wild) else [Url(name)]
