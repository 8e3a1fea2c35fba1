"""Tree -> objects: nested targets first, what the tree leaves out asked for by name."""

import contextlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from ldm.config.registry import groups, parameters, resolve_target
from ldm.config.validation import accepts
from ldm.errors import UserError


def instantiate(node: Any, provide: Callable[[str], Any], where: str) -> Any:
    """Build `node`: nested targets first, then its own; a parameter the tree leaves out is asked of `provide` by name.

    `provide(name)` returns the part or fact of that name, or raises KeyError if there is none (the default is used).
    Raises ValueError for a required parameter that neither the tree nor `provide` gives.
    """
    if isinstance(node, list):
        return [instantiate(item, provide, f"{where}[{position}]") for position, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    built = {k: instantiate(v, provide, f"{where}.{k}") for k, v in node.items() if k not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return built
    target = resolve_target(node["_target_"], where)
    for name, parameter in parameters(target).items():
        if name in built or node.get("_partial_"):
            continue
        with contextlib.suppress(KeyError):
            built[name] = provide(name)
        given = name in built and (built[name] is not None or accepts(parameter.annotation, None))
        if not given and parameter.default is inspect.Parameter.empty:
            hint = f"choose one with {name}=..." if name in groups() else f"set {where}.{name}"
            raise UserError(f"{where} ({target.__name__}) needs {name}: {hint}")
    return partial(target, **built) if node.get("_partial_") else target(**built)


def takes(node: dict[str, Any], name: str) -> bool:
    """Whether the constructor of a node has the argument `name`."""
    return name in parameters(resolve_target(node["_target_"], name))


def completed(node: Any) -> Any:
    """The tree with its constructors' defaults for what it leaves out: a run keeps its meaning when keys are added."""
    if isinstance(node, list):
        return [completed(item) for item in node]
    if not isinstance(node, dict):
        return node
    defaults = {}
    if "_target_" in node:
        taken = parameters(resolve_target(node["_target_"], "_target_"))
        plain = {name: p.default for name, p in taken.items() if p.default is not inspect.Parameter.empty}
        defaults = {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}
    return {**defaults, **{key: completed(value) for key, value in node.items()}}
