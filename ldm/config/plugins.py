"""Packages with parts of a user's own: ``plugins=[my_package]`` on the command line, and nothing else, names them.

A package has a folder ``conf/`` with the groups of ours, and code. A name that comes with a file, a checkpoint's tree
or an experiment, is only ever compared with those of the command line: it is never imported.
"""

import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ldm.errors import UserError
from ldm.installed import CONF

ENTRY_POINTS = "ldm.plugins"
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
OURS = frozenset(("ldm", "data", "train", "sample", "scripts"))


class Plugin(NamedTuple):
    """A package by its import name, the folder of its files, and its version."""

    name: str
    folder: Path
    version: str

    @property
    def conf(self) -> Path:
        return self.folder / "conf"


_named: tuple[Plugin, ...] = ()  # by the command line of this process


def use_plugins(names: Iterable[str]) -> None:
    """Let the parts of these packages be built, and of no others beside ours; their code is imported when they are.

    Each is a package that Python finds, from the working directory too, or the name of an entry point ``ldm.plugins``
    of an installed one. Raises UserError for one that is not there, or whose ``conf/`` is not as it has to be.
    """
    global _named
    found = tuple(_found(name) for name in dict.fromkeys(names))
    _check_files(found)
    _named = found


def named() -> list[str]:
    """The packages that are named now."""
    return [plugin.name for plugin in _named]


def of_a_package() -> str:
    """A hint to end a message about an unknown name with, if no plugin package is named."""
    return "" if _named else "; one of a package of your own needs plugins=[package]"


def folders() -> tuple[Path, ...]:
    """The configuration's folders: ours, then those of the plugins."""
    return CONF, *(plugin.conf for plugin in _named)


def search_path() -> list[str]:
    """The overrides that add the plugins' folders to Hydra's search path."""
    places = ",".join("'file://{}'".format(str(plugin.conf).replace("'", r"\'")) for plugin in _named)
    return [f"hydra.searchpath=[{places}]"] if _named else []


def roots() -> tuple[str, ...]:
    """The prefixes of the names of the plugins' modules."""
    return tuple(f"{plugin.name}." for plugin in _named)


def needed(tree: Any) -> list[str]:
    """The plugins whose code a tree's parts are, by name."""
    targets = list(_targets(tree))
    return [p.name for p in _named if any(target.startswith(f"{p.name}.") for target in targets)]


def versions(tree: Any) -> dict[str, str]:
    """The same with their versions."""
    names = needed(tree)
    return {plugin.name: plugin.version for plugin in _named if plugin.name in names}


def check_needed(tree: dict[str, Any], source: str) -> None:
    """Raises UserError if a saved tree says that it needs a plugin which the command line does not name."""
    said = tree.get("plugins") or []
    known = {plugin.name for plugin in _named}
    names = [name for name in said if isinstance(name, str)] if isinstance(said, list) else []
    for name in names:
        all_of_them = [*known, name]
        if name not in known and NAME.fullmatch(name) and len(name) < 100:
            raise UserError(
                f"{source}: needs the package {name}, whose code is not ours: if it is known to you, install it and "
                f"say plugins=[{','.join(all_of_them)}], in Python plugins={all_of_them}"
            )


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        node = list(node.values())
    for value in node if isinstance(node, list) else ():
        yield from _targets(value)


def _found(name: str) -> Plugin:
    module, distribution = _entry_point(name)
    if not NAME.fullmatch(module):
        raise UserError(f"plugins=[{name[:80]}]: not the name of a package")
    if module.partition(".")[0] in OURS:
        raise UserError(f"plugins=[{name}]: is a part of this project; call the package otherwise")
    spec = _spec(module)
    if spec is None and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: it hides nothing that is installed
        spec = _spec(module)
    if spec is None:
        raise UserError(f"plugins=[{name}]: no such package; install it, put the folder above it into PYTHONPATH, or "
                        "start the command there")  # fmt: skip
    for place in spec.submodule_search_locations or ():
        if (Path(place) / "conf").is_dir():
            folder = Path(place).resolve()
            return Plugin(module, folder, _version(module, distribution, folder))
    raise UserError(f"plugins=[{name}]: {spec.origin or module} has no folder conf/ with the YAML files of its parts")


def _spec(module: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except ModuleNotFoundError:  # the package above it
        return None


def _entry_point(name: str) -> tuple[str, str | None]:
    """The module and the distribution of the entry point of this name; the name itself if there is none."""
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS, name=name):
        return entry.module, entry.dist.name if entry.dist else None
    return name, None


def _version(module: str, distribution: str | None, folder: Path) -> str:
    """Of the distribution that it was installed with; of other packages a digest of their files."""
    top = module.partition(".")[0]
    dists = [distribution] if distribution else importlib.metadata.packages_distributions().get(top, [])
    for dist in dists:
        return importlib.metadata.version(dist)
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".yaml"))
    parts = (f"{path.relative_to(folder)}\0".encode() + path.read_bytes() for path in files)
    return f"sha256:{hashlib.sha256(b''.join(parts)).hexdigest()[:12]}"


def _check_files(plugins: Sequence[Plugin]) -> None:
    """Raises UserError for YAML files of a plugin in no group of ours, under a name that is taken, or no part."""
    taken = {path.relative_to(CONF): "ldm" for path in CONF.rglob("*.yaml")}
    known = {path.parts[0] for path in taken if len(path.parts) > 1}
    for plugin in plugins:
        for path in sorted(plugin.conf.rglob("*.yaml")):
            own = path.relative_to(plugin.conf)
            if len(own.parts) == 1 or own.parts[0] not in known:
                raise UserError(f"plugins=[{plugin.name}]: {path} is in no group; they are {', '.join(sorted(known))}")
            if own in taken:
                raise UserError(f"plugins=[{plugin.name}]: conf/{own} is in {taken[own]} already; call it otherwise")
            taken[own] = plugin.name
            _check_content(path, is_part=own.parts[0] != "experiment")


def _check_content(path: Path, is_part: bool) -> None:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not to be read as YAML: {' '.join(str(error).split())[:300]}") from error
    if not is_part:
        return
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key != "defaults"}
    nodes = list(content.values()) if isinstance(content, dict) and "_target_" not in content else [content]
    if not nodes or not all(isinstance(node, dict) and "_target_" in node for node in nodes):
        raise UserError(f"{path}: describes no part, which has _target_: package.module.Class at its top, or, of "
                        "a group of several, under a name of its own")  # fmt: skip
