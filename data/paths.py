"""From what the user wrote (braces, globs, lists) to the shards' places: local paths, or URLs of remote objects.

A name that exists is taken as it is, whatever letters it has; only the rest is a pattern. Names that are written out
are not asked for here where they are remote: one that is missing is found when its headers are read.
"""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from ldm.data.addresses import check_complete
from ldm.data.attempts import MissingShard
from ldm.data.braces import expand_braces
from ldm.data.errors import ShardError
from ldm.data.objects import SCHEMES, Location, Url
from ldm.data.storage import facts, matching

# Shipped data is named relative to the folder that holds this package, whatever the working directory is.
HOME = Path(__file__).resolve().parents[1]
MAX_NAME_CHARS = 4096
SHOWN_CHARS = 300
COMPOSED = "canvases://"  # data that is made of the built-in images when it is first asked for
QUOTES = "'\""


def expand(shards: str | Sequence[str], key: str) -> list[Location]:
    """Places of shards in the order written, local ones existing; `key` is the configuration key that errors name.

    A text ``[a,b]`` that names no file is the list of what it holds, as on a command line.
    """
    patterns = listed(shards, key) if isinstance(shards, str) else list(shards)
    if not all(isinstance(pattern, str | None) for pattern in patterns):
        raise ShardError(f"{key}={str(patterns)[:SHOWN_CHARS]}: shards are named by texts")
    paths = [path for pattern in patterns if pattern for path in _expand_one(pattern, key)]
    if not paths:
        raise ShardError(f"{key} names no shards")
    seen: set[str] = set()
    for path in paths:
        place = path.place if isinstance(path, Url) else str(path)
        if place in seen:
            raise ShardError(f"{key} names {path} twice; each shard is read once per epoch")
        seen.add(place)
    return paths


def listed(text: str, key: str) -> list[str]:
    """The patterns in a text: itself, or those of a list ``[a,b]``, split where a comma stands outside braces."""
    if not (text.startswith("[") and text.endswith("]")) or _literal(text, key):
        return [text]
    parts, depth = [""], 0
    for letter in text[1:-1]:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    parts = [part.strip() for part in parts]
    return [part[1:-1] if _is_quoted(part) else part for part in parts if part]


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] in QUOTES and text[-1] == text[0]


def _expand_one(pattern: str, key: str) -> list[Location]:
    if pattern.startswith("pipe:"):
        raise ShardError(f"{key}: {pattern!r} would run a shell command; give paths of .tar files")
    if pattern.startswith(COMPOSED):
        from ldm.data.making.canvas_shards import named_shards  # and with it scipy

        return list(named_shards(pattern.removeprefix(COMPOSED), key))
    check_complete(pattern, key)
    base = "" if "://" in pattern else _literal(pattern, key)
    is_url = "://" in pattern or "::" in pattern[len(base) :]
    try:
        names = [base + name for name in expand_braces(pattern[len(base) :])]
    except ValueError as error:
        raise ShardError(f"{key}: {pattern[:200]!r}: {error}") from None
    found: list[Location] = []
    for name in names:
        matches = _remote_matches(name, key) if is_url else _local_matches(name, key)
        if not matches:
            raise ShardError(
                f"{key}: no shard {str(Url(name) if is_url else name)[:SHOWN_CHARS]} {_reason(pattern, is_url)}"
            )
        folder = next((match for match in matches if isinstance(match, Path) and match.is_dir()), None)
        if folder is not None:
            raise ShardError(f"{key}: {folder} is a folder; name its shards, such as {folder}/*.tar")
        found += matches
    return found


def _reason(pattern: str, is_url: bool) -> str:
    """Why there may be no such shard."""
    if _is_quoted(pattern):
        return "(quotes are a part of the name here: leave them out)"
    if "," in pattern and "{" not in pattern:
        return "(several are written {a.tar,b.tar} or [a.tar,b.tar])"
    shown = str(Url(pattern) if is_url else pattern)[:SHOWN_CHARS]
    return f"(from {shown!r})" if is_url else f"(from {shown!r}, working directory {Path.cwd()})"


def _literal(pattern: str, key: str) -> str:
    """The longest beginning of a pattern, up to a slash or its end, that exists as it is written."""
    if os.path.exists(_at_home(pattern, key)):
        return pattern
    end = 0
    while True:
        following = pattern.find("/", end) + 1
        if not following or not os.path.exists(_at_home(pattern[:following], key)):
            return pattern[:end]
        end = following


def _local_matches(name: str, key: str) -> list[Path]:
    """The path itself or what it matches as a glob; a relative one may also start at the package's folder."""
    name = _at_home(name, key)
    name = name.rstrip("/") or "/"
    if len(name) > MAX_NAME_CHARS:
        return []
    for candidate in [name] if os.path.isabs(name) else [name, f"{HOME}/{name}"]:
        base = _literal(candidate, key)
        if base == candidate:
            return [Path(candidate).resolve()]
        matches = sorted(glob.glob(glob.escape(base) + candidate[len(base) :]))
        if matches:
            return [Path(match).resolve() for match in matches]
    return []


def _at_home(name: str, key: str) -> str:
    """The name with ~ or ~user replaced by that user's folder."""
    if not name.startswith("~"):
        return name
    found = os.path.expanduser(name)
    if found.startswith("~"):
        user = name.partition("/")[0]
        raise ShardError(f"{key}: {user} in {name!r} is no user's folder here; write the path out")
    return found


def _remote_matches(name: str, key: str) -> list[Url]:
    """The object itself, or what its name matches as a glob. A question mark in a web address begins a query."""
    scheme, _, place = name.partition("://")
    if scheme not in SCHEMES or "::" in place:
        raise ShardError(
            f"{key}: {str(Url(name))!r} is not read; URLs begin with {', '.join(f'{s}://' for s in SCHEMES)}"
        )
    is_web = scheme in ("http", "https")
    pattern, wild = (name.partition("?")[0], "*[") if is_web else (name, "*?[")
    if not any(letter in pattern for letter in wild):
        return [Url(name)]
    return matching(Url(name)) or ([Url(name)] if _is_there(Url(name)) else [])


def _is_there(url: Url) -> bool:
    try:
        facts(url)
    except MissingShard:
        return False
    return True
