"""Validates a tree against the constructors of its targets: keys, types, ranges, and which part may stand where."""

import difflib
import inspect
import math
import re
import types
import typing
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ldm.config.keys import AT_MOST, POSITIVE, TRAINER_TYPES
from ldm.config.registry import (
    belongs_to_argument,
    belongs_to_group,
    groups,
    may_wait,
    taken_by,
)
from ldm.errors import UserError

# What a tree can write down, and what may hold several of it.
_PLAIN = (bool, int, float, str, Path, None, type(None))
_CONTAINERS = (Mapping, list, tuple, typing.Sequence)


def nearest(name: object, names: typing.Iterable[str]) -> str:
    """A guess at what was meant, as the end of a message; empty where nothing is near."""
    match = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def validate(tree: dict[str, Any], swept: Collection[str] = (), among: Collection[str] | None = None) -> None:
    """Bind every key of every ``_target_`` to its constructor and check its type, before anything is built.

    Each item of a list under one of the `swept` keys is checked, or under a key of one of the groups among them that
    takes no list itself. Parts stand in groups, `among` these if given, in
    each its own options only.
    """
    among = groups() if among is None else among
    _validate(tree, "", swept, lambda name: False)
    for group, node in tree.items():
        stands = partial(belongs_to_group, group=group) if group in among else lambda name: False
        several = isinstance(node, dict) and "_target_" not in node
        for where, part in [(f"{group}.{k}", v) for k, v in node.items()] if several else [(str(group), node)]:
            _validate(part, where, swept, stands)


def _validate(node: Any, where: str, swept: Collection[str], stands: Any) -> None:
    """Check a node; ``stands(target)`` is whether it may stand here."""
    if isinstance(node, list):
        for position, item in enumerate(node):
            _validate(item, f"{where}[{position}]", swept, stands)
    if not isinstance(node, dict) or (not where and "_target_" not in node):
        return
    if "_target_" not in node:
        for key, value in node.items():
            _validate(value, f"{where}.{key}", swept, stands)
        return
    target = node["_target_"]
    known = taken_by(target, where)
    if not stands(target):
        raise UserError(f"{where}._target_={target}: not allowed here; it is no part of this kind")
    for key, value in node.items():
        if key == "_target_" or (key == "_partial_" and value is True and may_wait(target)):
            continue
        if key not in known:
            raise UserError(f"{where}.{key}: no such key{nearest(key, known)} (takes {', '.join(known)})")
        _check_argument(f"{where}.{key}", known[key].annotation, value, swept)
        inner = partial(belongs_to_argument, parent=target, argument=key, annotation=known[key].annotation)
        _validate(value, f"{where}.{key}", swept, inner)


def _check_argument(where: str, annotation: Any, value: Any, swept: Collection[str]) -> None:
    annotation = TRAINER_TYPES.get(where, annotation)
    several = isinstance(value, list) and (
        where in swept or (_swept_group(where, swept) and not accepts(annotation, value))
    )
    values = value if several else [value]
    if not all(accepts(annotation, item) for item in values):
        raise UserError(f"{where}={repr(value)[:200]}: expected {readable(annotation)}")
    for item in values:
        check_range(where, annotation, item)
        _check_entries(where, annotation, item)


def _swept_group(where: str, swept: Collection[str]) -> bool:
    return where.partition(".")[0] in swept


def check_root_key(key: str, annotation: Any, value: Any) -> None:
    """Raises ValueError for a value of a key of the root that is not of its type, or not in its range."""
    if not accepts(annotation, value):
        raise UserError(f"{key}={repr(value)[:200]}: expected {readable(annotation)}")
    for item in value if isinstance(value, list) else [value]:
        if key in POSITIVE and item is not None and item < 1:
            raise UserError(f"{key}={value}: must be at least 1")
        if isinstance(item, int) and item > AT_MOST.get(key, math.inf):
            raise UserError(f"{key}={value}: must be at most {AT_MOST[key]}")


def check_range(where: str, annotation: Any, value: Any) -> None:
    """Raises ValueError for a number that is meaningless under a key of this name, whatever part takes it.

    A whole number counts something here, but for seeds and Lightning's own keys, where -1 means all.
    """
    key = where.rpartition(".")[2]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if math.isnan(value):
        raise UserError(f"{where}={value}: must be a number")
    if where.startswith("trainer."):
        return
    if key.endswith(("_prob", "_fraction")) and not 0 <= value <= 1:
        raise UserError(f"{where}={value}: must be between 0 and 1")
    whole = annotation is int or int in typing.get_args(annotation)
    if whole and (key in POSITIVE or key.endswith("every_steps")) and value < 1:
        raise UserError(f"{where}={value}: must be at least 1")
    if whole and value < 0 and key != "seed":
        raise UserError(f"{where}={value}: must be at least 0")
    if whole and value > AT_MOST.get(key, math.inf):
        raise UserError(f"{where}={value}: must be at most {AT_MOST[key]}")


def _check_entries(where: str, annotation: Any, value: Any) -> None:
    """Check a mapping against the TypedDict that its annotation names for it or for its values."""
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    for option in options if isinstance(value, dict) else ():
        if typing.is_typeddict(option):
            kinds = typing.get_type_hints(option)
            for name, item in value.items():
                if name not in kinds:
                    raise UserError(f"{where}.{name}: no such key{nearest(name, kinds)} (takes {', '.join(kinds)})")
                if not accepts(kinds[name], item):
                    raise UserError(f"{where}.{name}={item!r}: expected {readable(kinds[name])}")
                check_range(f"{where}.{name}", kinds[name], item)
        elif typing.get_origin(option) is Mapping and "_target_" not in value:
            for name, item in value.items():
                _check_entries(f"{where}.{name}", typing.get_args(option)[1], item)


def accepts(annotation: Any, value: Any) -> bool:
    """Whether a YAML value fits an annotation; whole numbers fit float, and a nested ``_target_`` is not judged."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is inspect.Parameter.empty or annotation is Any or (isinstance(value, dict) and "_target_" in value):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(accepts(argument, value) for argument in arguments)
    if origin is typing.Literal:
        return any(value == argument and type(value) is type(argument) for argument in arguments)
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is bool:
        return isinstance(value, bool)
    if annotation in (int, float):
        allowed = int if annotation is int else (int, float)
        return isinstance(value, allowed) and not isinstance(value, bool)
    if annotation in (str, Path):
        return isinstance(value, str)
    container = origin or annotation
    if isinstance(container, type) and issubclass(container, Mapping):
        return isinstance(value, dict) and all(accepts(arguments[1] if arguments else Any, v) for v in value.values())
    if isinstance(container, type) and issubclass(container, (list, tuple, typing.Sequence)):
        return isinstance(value, list) and all(accepts(arguments[0] if arguments else Any, item) for item in value)
    return False  # an object: given by a nested _target_ or injected, never by a bare value


def fits(annotation: Any, value: Any) -> bool:
    """Whether an object fits an annotation, as far as its class tells; what has no annotation takes anything."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(fits(argument, value) for argument in typing.get_args(annotation))
    if annotation in _PLAIN or origin is typing.Literal:
        return (isinstance(value, Path) and annotation is Path) or accepts(annotation, value)
    kind = origin or annotation
    untold = kind in (Any, inspect.Parameter.empty) or not inspect.isclass(kind)
    if untold or typing.is_typeddict(kind) or getattr(kind, "_is_protocol", False):
        return True
    return isinstance(value, kind)


def takes_objects(annotation: Any) -> bool:
    """Whether an annotation asks for what a tree cannot write down, an object of some class or a function."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(map(takes_objects, typing.get_args(annotation)))
    kind = typing.get_origin(annotation) or annotation
    plain = annotation in _PLAIN or kind in (typing.Literal, Any, inspect.Parameter.empty)
    return not plain and not (inspect.isclass(kind) and issubclass(kind, _CONTAINERS))


def readable(annotation: Any) -> str:
    """An annotation as a message shows it."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    if typing.get_origin(annotation) is typing.Union:  # what X | Literal[...] is, unlike int | None
        return " | ".join(readable(option) for option in typing.get_args(annotation))
    return re.sub(r"\b(typing|collections\.abc)\.", "", str(annotation))


def nested(annotation: Any, key: str) -> Any:
    """What `annotation` says of the entry `key` of a mapping, or None if it has none."""
    for option in typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,):
        if typing.is_typeddict(option):
            return typing.get_type_hints(option).get(key)
        if typing.get_origin(option) is not None and issubclass(typing.get_origin(option), Mapping):
            return typing.get_args(option)[1]
    return None
