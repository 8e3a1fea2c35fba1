"""What conf/ holds: roots, groups, and every target that may be built, with the places where it may stand."""

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ldm.config.plugins import CONF, folders, of_a_package, roots
from ldm.config.signatures import arguments, defined_in, full_name, imported, made
from ldm.errors import UserError

ROOTS = ("ldm.", "torch.optim.", "pytorch_lightning.")  # where a target's object must be defined
NO_GROUPS = ("tree", "ablation")  # folders of conf/ whose files a command reads by itself: trees, ablations


@cache
def root(config_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys of ``conf/<config_name>.yaml`` with their defaults; its groups with theirs, a list where several may be."""
    content = yaml.safe_load((CONF / f"{config_name}.yaml").read_text())
    entries = [entry for entry in content.pop("defaults") if isinstance(entry, dict)]
    return content, {group: chosen for entry in entries for group, chosen in entry.items()}


def groups() -> dict[str, list[str]]:
    """Config groups and their options, from the folders of ``conf/`` and of the plugins' own."""
    return _groups(folders())


@cache
def _groups(confs: tuple[Path, ...]) -> dict[str, list[str]]:
    options: dict[str, list[str]] = {}
    for conf in confs:
        for path in sorted(conf.rglob("*.yaml")):
            group, *rest = path.relative_to(conf).with_suffix("").parts
            if rest and group not in NO_GROUPS:
                options.setdefault(group, []).append("/".join(rest))
    return options


def keys_of(group: str, option: str) -> list[str]:
    """What an option of a group that takes several fills there: mostly its own name."""
    paths = (conf / group / f"{option}.yaml" for conf in folders())
    return list(_content(next(path for path in paths if path.exists())))


def part_of(group: str, option: str) -> list[dict[str, Any]]:
    """The parts in the file of an option, as it has them: one, but where a group takes several."""
    paths = (conf / group / f"{option}.yaml" for conf in folders())
    content = _content(next(path for path in paths if path.exists()))
    return [content] if "_target_" in content else list(content.values())


def _content(leaf: Path) -> dict[str, Any]:
    """The content of a leaf file without its defaults list."""
    return {key: value for key, value in yaml.safe_load(leaf.read_text("utf-8")).items() if key != "defaults"}


def registry() -> frozenset[str]:
    """Every target that may be instantiated: exactly those the leaf files of ``conf/`` and of the plugins name."""
    return _registry(folders())


@cache
def _registry(confs: tuple[Path, ...]) -> frozenset[str]:
    texts = (path.read_text() for conf in confs for path in conf.rglob("*.yaml"))
    return frozenset(name for text in texts for name in re.findall(r"^\s*_target_:\s*([\w.]+)\s*$", text, re.MULTILINE))


OVERRIDES = ("experiment", "sweep")  # groups whose files set keys of the root

Places = tuple[dict[str, set[str]], dict[tuple[str, str], set[str]], set[str]]


@cache
def _places(confs: tuple[Path, ...]) -> Places:
    """Targets by their group; by (target, argument) for parts of parts; and those that wait for further arguments."""
    of_group: dict[str, set[str]] = {}
    of_argument: dict[tuple[str, str], set[str]] = {}
    shared: list[tuple[str, str, str]] = []  # (target, argument, the group that stands there by interpolation)
    waiting: set[str] = set()
    for group, leaf in _leaves(confs):
        for node in [leaf] if "_target_" in leaf else leaf.values():
            of_group.setdefault(group, set()).add(node["_target_"])
            for part in _parts(node):
                waiting |= {part["_target_"]} if "_partial_" in part else set()
                for argument, value in part.items():
                    inner = {below["_target_"] for below in _parts(value, deep=False)}
                    of_argument.setdefault((part["_target_"], argument), set()).update(inner)
                    whole = re.fullmatch(r"\$\{(\w+)\}", value) if isinstance(value, str) else None
                    shared += [(part["_target_"], argument, whole[1])] if whole else []
    for target, argument, group in shared:
        of_argument[target, argument] |= of_group.get(group, set())
    return of_group, of_argument, waiting


def _leaves(confs: tuple[Path, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(group, content) of each leaf file; experiments and sweeps only override."""
    for conf in confs:
        for path in sorted(conf.glob("*/**/*.yaml")):
            group = path.relative_to(conf).parts[0]
            if group not in (*OVERRIDES, *NO_GROUPS):
                yield group, _content(path)


def _parts(node: Any, deep: bool = True) -> Iterator[dict[str, Any]]:
    """The nodes with a target in a node of a leaf file; without those below others unless `deep`."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        if deep or "_target_" not in node:
            for value in node.values():
                yield from _parts(value, deep)


def resolve_target(name: str, where: str) -> Callable:
    """The class or function a ``_target_`` names. Raises ValueError unless it is in the registry and ours."""
    _check_named(name, where)
    try:
        target = imported(name)
    except ModuleNotFoundError as error:
        if not f"{name.rpartition('.')[0]}.".startswith(f"{error.name}."):  # something that the module asks for
            raise
        raise UserError(f"{where}._target_={name}: there is no module {error.name}") from error
    if not callable(target) or not _is_ours(getattr(target, "__module__", None)):
        raise UserError(f"{where}._target_={name}: names nothing that may be built")
    return target


def taken_by(name: str, where: str) -> Mapping[str, Any]:
    """The arguments that a ``_target_`` takes by name, with their annotations. Raises what resolve_target does.

    As its source says: nothing is imported where that tells.
    """
    _check_named(name, where)
    if not _is_ours(defined_in(name)):
        resolve_target(name, where)
    return arguments(name)


def _check_named(name: str, where: str) -> None:
    if not isinstance(name, str) or name not in registry():
        raise UserError(
            f"{where}._target_={str(name)[:200]}: not allowed; only targets named in conf/ can be built{of_a_package()}"
        )


def _is_ours(module: str | None) -> bool:
    return f"{module}.".startswith((*ROOTS, *roots()))


def may_wait(name: str) -> bool:
    """Whether conf/ has a target wait for further arguments (``_partial_``)."""
    return name in _places(folders())[2]


def belongs_to_group(name: str, group: str) -> bool:
    """Whether a target is an option of a group."""
    return name in _places(folders())[0].get(group, ())


def belongs_to_argument(name: str, parent: str, argument: str, annotation: Any) -> bool:
    """Whether a target may be the `argument` of another, `parent`: as in conf/, or as what it makes is asked for.

    An argument that takes anything, or anybody's class, takes what conf/ has there and nothing else.
    """
    if name in _places(folders())[1].get((parent, argument), ()):
        return True
    return not made(name).isdisjoint(map(full_name, filter(is_part, _classes(annotation))))


def is_part(annotation: Any) -> bool:
    """Whether an annotation is a class of ours, whose objects a nested target makes."""
    ours = inspect.isclass(annotation) and f"{annotation.__module__}.".startswith(("ldm.", *roots()))
    return ours and not typing.is_typeddict(annotation)


def _classes(annotation: Any) -> Iterator[type]:
    """The classes in an annotation, in containers and unions too."""
    if typing.get_origin(annotation) not in (None, types.UnionType, typing.Union, typing.Literal):
        pass
    elif inspect.isclass(annotation) and not typing.is_typeddict(annotation):
        yield annotation
    for argument in typing.get_args(annotation):
        if typing.get_origin(annotation) is not typing.Literal:
            yield from _classes(argument)
