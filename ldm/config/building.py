"""Tree -> objects: nested targets first; arguments that the tree leaves out are looked up by name."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

from ldm.config.keys import WAYS
from ldm.config.registry import groups, resolve_target, taken_by
from ldm.config.signatures import parameters
from ldm.config.validation import accepts, fits, readable, takes_objects
from ldm.errors import UserError


class Offered(Protocol):
    """Objects that can be looked up by name: ``name in offered`` first, then ``offered[name]``, which may build it."""

    def __contains__(self, name: str) -> bool: ...

    def __getitem__(self, name: str) -> Any: ...


def instantiate(
    node: Any, offered: Offered, where: str, within: Callable[[], AbstractContextManager] = nullcontext
) -> Any:
    """Build `node`: nested targets first, then its own; a parameter the tree leaves out is asked of `offered` by name.

    It is taken where the parameter's annotation accepts it, else the default is; without annotation, only where there
    is no default. Raises UserError for a required parameter that neither the tree nor `offered` gives, and for a part
    of another class than the one asked for. Of what a constructor raises only a ValueError becomes a UserError.
    Its own target alone is called `within`.
    """
    if isinstance(node, list):
        return [instantiate(item, offered, f"{where}[{position}]") for position, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    built = {k: instantiate(v, offered, f"{where}.{k}") for k, v in node.items() if k not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return built
    target = resolve_target(node["_target_"], where)
    if node.get("_partial_"):
        return partial(target, **built)
    for name, parameter in parameters(target).items():
        if name not in built:
            late = inspect.isfunction(target)
            built |= _found(name, parameter, offered, f"{where} ({target.__name__})", where, late)
    try:
        with within():
            return target(**built)
    except UserError:
        raise
    except ValueError as error:  # torch's too: numbers that do not go together
        raise UserError(f"{where} ({target.__name__}): {error}") from error


def _found(
    name: str, parameter: inspect.Parameter, offered: Offered, who: str, where: str, late: bool
) -> dict[str, Any]:
    """{name: what is offered under it} if the parameter takes that, {} if it keeps its default.

    `late`: of a function, which may be meant to be called by others.
    """
    annotation, required = parameter.annotation, parameter.default is inspect.Parameter.empty
    asked = required or annotation is not inspect.Parameter.empty
    if asked and name in offered:
        value = offered[name]
        if fits(annotation, value):
            return {name: value}
        if value is not None and takes_objects(annotation):
            raise UserError(f"{who} takes {name} as {readable(annotation)}, and the one chosen is a {_kind(value)}")
    if not required:
        return {}
    choice = f"choose one with {name}=..." if name in groups() and takes_objects(annotation) else f"set {where}.{name}"
    hint = WAYS.get(name, choice)
    later = "; a function that others call, as samplers are, has _partial_: true in its YAML" if late else ""
    raise UserError(f"{who} needs {name}: {hint}{later}")


def _kind(value: Any) -> str:
    return getattr(value, "__name__", type(value).__name__)


def takes(node: dict[str, Any], name: str) -> bool:
    """Whether the constructor of a node has the argument `name`."""
    return name in parameters(resolve_target(node["_target_"], name))


def listed(target: str | None, name: str, value: list) -> bool:
    """Whether a list is one value of the argument `name` of a target, and not several of them."""
    annotation = taken_by(target, name).get(name) if target else None
    return annotation is not None and accepts(annotation.annotation, value)


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
