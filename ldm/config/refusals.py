"""One line for whatever Hydra refuses: the wrong key or option, and the way out."""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from hydra import compose as hydra_compose
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ldm.config.plugins import of_a_package, search_path
from ldm.config.registry import groups, is_part, taken_by
from ldm.config.validation import nearest, nested


def explain(error: Exception, config_name: str, parsed: list[Override]) -> str:
    """One line that names the wrong key and the way out, for whatever Hydra raised."""
    known_groups = groups()
    for override in parsed:
        key, value = override.key_or_group, override.value()
        if override.is_sweep_override():
            return f"{key}: several values; write a list as {key}=[a,b], or start a sweep with -m"
        if override.is_add() and key == "experiment":
            return "write experiment=NAME without the +: the key exists already"
        if key not in known_groups or override.is_delete():
            continue
        options = known_groups[key]
        for option in value if isinstance(value, list) else [value]:
            if option not in options:
                hint = nearest(option, options) or of_a_package()
                return f"{key}={option}: no such option{hint} (there are: {', '.join(options)})"
    tree = unset(config_name, parsed)
    if tree is not None:
        names = list(_leaves(tree))
        for override in parsed:
            key = override.key_or_group
            left_out = is_left_out(tree, key.split("."))
            if not override.is_add() and key not in known_groups and key not in names and not left_out:
                absent, annotation = missing_at(tree, key.split("."))
                if is_part(annotation):
                    said = f"{key}: there is no {absent}; a new one must be given whole"
                    return f"{said}, {absent}={{_target_:module.Class,...}}"
                return f"{key}: no such key{nearest(key, [*names, *_siblings(tree, key), *known_groups])}"
    if str(error).startswith("Error merging override "):
        return f"{first_line(error)[len('Error merging override ') :]}: cannot take the place of what is there"
    where = re.search(r"full_key: (\S+)", str(error))
    if isinstance(error, MissingMandatoryValue):
        missing = where[1] if where else str(error).split()[-1]
        return f"{missing}: has to be given, {missing}=..."
    return f"{where[1]}: {first_line(error)}" if where else first_line(error)


def unset(config_name: str, parsed: list[Override]) -> Any:
    """The tree of the chosen parts without any other override; None if Hydra cannot compose it."""
    chosen = (override.input_line for override in parsed if override.key_or_group in groups())
    return _unset_tree(config_name, (*search_path(), *chosen))


@lru_cache(1)  # one mistake needs it twice
def _unset_tree(config_name: str, words: tuple[str, ...]) -> Any:
    try:
        return OmegaConf.to_container(hydra_compose(config_name, list(words)))
    except (HydraException, OmegaConfBaseException, ValueError):
        return None


def is_left_out(tree: Any, path: list[str]) -> bool:
    """Whether the first key of `path` that is not in the tree is an argument of the part that should have it."""
    _, annotation = missing_at(tree, path)
    return annotation is not None and not is_part(annotation)  # a part has to be given whole


def missing_at(node: Any, path: list[str]) -> tuple[str, Any]:
    """The first key along `path` that is not in the tree, '' if all are, and what the part that should have it says of
    it, or None.
    """
    annotation: Any = None
    for place, key in enumerate(path):
        where = ".".join(path[: place + 1])
        if node in (None, "???") and nested(annotation, key):  # a mapping that has no entries yet
            node = {}
        if not isinstance(node, dict):
            return where, None
        if "_target_" in node:
            known = taken_by(node["_target_"], ".".join(path))
            annotation = known[key].annotation if key in known else None
        else:
            annotation = nested(annotation, key)
        if key not in node:
            return where, annotation
        node = node[key]
    return "", None


def _siblings(tree: Any, key: str) -> list[str]:
    """Keys that the part which should have `key` takes, whether its leaf file has them or not."""
    *above, _ = key.split(".")
    for name in above:
        tree = tree.get(name) if isinstance(tree, dict) else None
    if not isinstance(tree, dict) or "_target_" not in tree:
        return []
    return [".".join([*above, name]) for name in taken_by(tree["_target_"], key)]


def _leaves(tree: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if not str(key).startswith("_"):
                yield f"{prefix}{key}"
                yield from _leaves(value, f"{prefix}{key}.")


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
