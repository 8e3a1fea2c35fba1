"""What overwrite=true may delete: what a run writes, in a folder that is a run's, and nothing the command needs."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ldm.config import load_plain
from ldm.data.paths import expand
from ldm.errors import UserError
from ldm.files import TEMPORARY, read_json
from ldm.holding import NAME as HELD
from ldm.holding import TEMPORARY as HOLDING

# What a run and its evaluation write, in the order of deletion: the remains of an interrupted deletion have no
# checkpoint, and can be recognised as a run for as long as possible.
FIRST = ("checkpoints", "lineage.json", "weights", "snapshots")
OWN = re.compile(r"metrics\.csv|samples|ranks|requeue|wandb|(evaluation|samplers)(-.*)?")
LAST = "config.yaml"
PASSING = (TEMPORARY, HOLDING, HELD)  # prefixes of names that do not show what the folder is
ROOT_KEYS = {"task", "data", "seed", "max_steps", "image_size"}  # of every run's tree


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's: by its tree and its lineage, or one of them if it was killed before both existed."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(PASSING)}
    lineage = False
    with suppress(OSError, ValueError):
        lineage = "run" in read_json(folder / "lineage.json")
    if LAST not in names:
        return not names or (lineage and names == {"lineage.json"})
    try:
        tree = load_plain(folder / LAST, "a run's configuration")
    except (OSError, ValueError):
        return False
    return tree.keys() >= ROOT_KEYS and (lineage or all(_own(name) for name in names))


def check_overwrite(folder: Path, tree: dict[str, Any]) -> None:
    """Raises ValueError unless what is in `folder` is a run's, and nothing that `tree` names."""
    if not folder.exists():
        return
    if not is_run(folder):
        raise UserError(f"overwrite=true: {folder} is not a run's folder; choose another run=, or delete it yourself")
    for key, text in _texts(tree):
        if any(_inside(place, folder) for place in _places(key, text)):
            raise UserError(f"{key}={text} is in {folder}, which overwrite=true would delete; give run= another name")


def clear(folder: Path) -> list[str]:
    """Delete what a run has written, and return the names of what else is there. A link to the folder stays one."""
    aside = folder / f"{TEMPORARY}{os.getpid()}-overwritten"
    aside.mkdir()
    names = {path.name for path in folder.iterdir() if not path.name.startswith(PASSING)}
    own = [*FIRST, *sorted(name for name in names if OWN.fullmatch(name)), LAST]
    for name in own:
        if name in names:
            (folder / name).replace(aside / name)
    shutil.rmtree(aside, ignore_errors=True)
    return sorted(names - set(own))


def _own(name: str) -> bool:
    return name in (*FIRST, LAST) or OWN.fullmatch(name) is not None


def _texts(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a tree that may be a path, with its key."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name not in ("_target_", "runs_dir", "run"):
                yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list):
        for value in tree:
            yield from _texts(value, key)
    elif isinstance(tree, str) and tree:
        yield key, tree


def _places(key: str, text: str) -> Iterator[Path]:
    """The existing paths that a text names: by a path, a glob, or the manifest of an ensemble (its members)."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):  # any file may lie under that name
        if any(mark in text for mark in "*?[{"):
            yield from (place for place in expand(text, key) if isinstance(place, Path))
            return
        path = Path(text).expanduser()
        if path.exists():  # a part of it may be a link
            yield from (path, *(path / part for part in FIRST if (path / part).exists()))
        if path.suffix == ".yaml" and path.is_file():
            for member in load_plain(path, "a manifest").get("members", []):
                yield path.parent / member["run"]


def _inside(place: Path, folder: Path) -> bool:
    """Whether a path is a folder or lies in it, with links resolved."""
    real = place.resolve()
    return any(above.samefile(folder) for above in (real, *real.parents) if above.exists())
