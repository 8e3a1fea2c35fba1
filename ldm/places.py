"""Resolves the paths stored in files: they are relative to the file, so that both can be moved together."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ldm.checkpoint import weights
from ldm.config import load_tree
from ldm.files import read_json


def relative(path: Path, folder: Path) -> str:
    """`path` relative to `folder`, as a file in it stores it, with links to either resolved."""
    absolute = path.expanduser().absolute()
    return os.path.relpath(absolute.parent.resolve() / absolute.name, folder.resolve())


def found(text: str, folder: Path) -> Path:
    """Resolve a path stored in a file in `folder`: see `relative`; older files store paths as they were given.

    A file that has been moved is looked for in `folder` itself.
    """
    places = (folder.resolve() / text, Path(os.path.expanduser(text)), folder / Path(text).name)
    return next((place for place in places if place.exists()), places[0])


def stored(text: str, folder: Path) -> Path:
    """Resolve a path stored in a file of anyone in `folder`: see `found`, but `~` is nobody's home."""
    places = (folder.resolve() / text, folder / Path(text).name)
    return next((place for place in places if is_there(place)), places[0])


def is_there(place: Path) -> bool:
    """Whether something is at a place; no name that a file can have is no error."""
    try:
        return place.exists()
    except (OSError, ValueError):
        return False


def first_stage_of(run: Path) -> str | None:
    """The path of the first stage that the run in folder `run` was trained with; as stored if it is not found.

    Of several candidates, one that has those weights.
    """
    text = load_tree(run / "config.yaml").get("first_stage")
    if not text:
        return None
    there = [place for place in _candidates(run, Path(text).expanduser()) if place.exists()]
    same = (place for place in there if fingerprint(run) in digests(place))
    return str(next(same, there[0] if there else text))


def paths_of(node: Any, run: Path) -> Any:
    """A part of a tree of the run in the folder `run`, each `path` in it that is not there any more looked for inside
    the run (an imported model has its encoder there), beside it, and from the folders above it.
    """
    if not isinstance(node, dict):
        return node
    return {
        key: _moved(value, run) if key == "path" and isinstance(value, str) else paths_of(value, run)
        for key, value in node.items()
    }


def _moved(text: str, run: Path) -> str:
    path = Path(text).expanduser()
    if path.exists() or len(path.parts) < 2:  # one word is a name that something else knows
        return text
    return str(next((place for place in _around(run, path) if place.exists()), text))


def fingerprint(run: Path) -> str | None:
    """The fingerprint of a run's first stage, from its lineage or the JSON beside its weights; None if unknown."""
    with suppress(OSError, ValueError):
        noted = read_json(run / "lineage.json").get("first_stage")
        if noted is not None:
            return noted
    with suppress(OSError, ValueError, TypeError, KeyError):
        return read_json(weights.newest(run))["latent"]["fingerprint"]
    return None


def _candidates(run: Path, path: Path) -> Iterator[Path]:
    """Where a first stage may lie: the path in the lineage, the path as stored, and those around the run."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        yield Path(os.path.normpath(run.resolve() / read_json(run / "lineage.json")["first_stage_path"]))
    yield path
    yield from _around(run, path)


def _around(run: Path, path: Path) -> Iterator[Path]:
    """What `path` may be inside a run, as seen from any folder above it, and beside it."""
    tail = Path(*path.parts[-3:]) if path.suffix == ".safetensors" else Path(path.name)
    yield run / tail
    for real in (run.absolute(), run.resolve()):
        if not path.is_absolute():
            yield from (above / path for above in real.parents)
        yield real.parent / tail


def digests(path: Path) -> set[str]:
    """The recorded sha256 of the newest weights in a run's folder (averaged, else raw), or of one weights file."""
    try:
        if path.suffix == ".safetensors":
            return {read_json(path.with_name(f"{path.name.split('.')[0]}.json"))["sha256"][path.name.split(".")[1]]}
        recorded = read_json(weights.newest(path))["sha256"]
        return {recorded.get("ema") or recorded["raw"]}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        return set()
