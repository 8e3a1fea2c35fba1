"""What a target takes and what it makes, read from its source; it is imported where the source does not tell."""

import ast
import importlib
import inspect
import typing
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ldm.config.plugins import folders
from ldm.config.sources import Definition, Sources, Unreadable

# Decorators that leave a signature as it is; the last is that of Lightning's Trainer.
TRANSPARENT = frozenset(
    {"abstractmethod", "cache", "contextmanager", "final", "inference_mode", "lru_cache", "no_grad", "override",
     "runtime_checkable", "_defaults_from_env_vars"}
)  # fmt: skip


class Argument:
    """An argument that a target takes by name; `default` is its text in the source, None for a required one."""

    def __init__(self, target: str, name: str, sources: Sources, owner: Definition, node: ast.expr | None,
                 default: ast.expr | None):  # fmt: skip
        self._target, self._name, self._sources, self._owner, self._node = target, name, sources, owner, node
        self.default = None if default is None else ast.unparse(default)

    @cached_property
    def annotation(self) -> Any:
        """As `inspect` has it, but for the classes' stand-ins; read when it is asked for."""
        if self._node is None:
            return inspect.Parameter.empty
        try:
            return self._sources.evaluated(self._node, self._owner.module)
        except Unreadable:
            return parameters(imported(self._target))[self._name].annotation


def arguments(target: str) -> Mapping[str, Any]:
    """What a target takes by name: each an Argument, or what `inspect` says of it."""
    return _arguments(folders(), target)


def made(target: str) -> frozenset[str]:
    """Full names of the class that a target is or returns, and of that class's bases; none without an annotation."""
    return _made(folders(), target)


def defined_in(target: str) -> str | None:
    """The module whose source defines a target; None where that cannot be told without an import."""
    try:
        return _definition(folders(), target).module.name
    except Unreadable:
        return None


def full_name(kind: type) -> str:
    """Module and name of a class, the same for a class and its stand-in."""
    return f"{kind.__module__}.{kind.__qualname__}"


def imported(target: str) -> Any:
    """The object itself; None if its module has no such name."""
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name, None)


def parameters(target: typing.Callable) -> dict[str, inspect.Parameter]:
    """The arguments that an object takes by name."""
    signature = inspect.signature(target, eval_str=True)
    plain = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: p for name, p in signature.parameters.items() if p.kind not in plain}


@cache
def _sources(confs: tuple[Path, ...]) -> Sources:
    return Sources()


def _definition(confs: tuple[Path, ...], target: str) -> Definition:
    module, _, name = target.rpartition(".")
    return _sources(confs).definition(module, name)


@cache
def _arguments(confs: tuple[Path, ...], target: str) -> Mapping[str, Any]:
    sources = _sources(confs)
    try:
        found = _definition(confs, target)
        taken = _of_class(sources, found) if isinstance(found.node, ast.ClassDef) else _of_function(found)
        return {name: Argument(target, name, sources, *said) for name, said in taken}
    except Unreadable:
        return parameters(imported(target))


@cache
def _made(confs: tuple[Path, ...], target: str) -> frozenset[str]:
    sources = _sources(confs)
    try:
        module, node = _definition(confs, target)
        if isinstance(node, ast.ClassDef):
            kind = sources.value(module.name, node.name)
        else:
            kind = sources.evaluated(node.returns, module) if node.returns else None
    except Unreadable:
        whole = imported(target)
        kind = whole if inspect.isclass(whole) else typing.get_type_hints(whole).get("return")
    return frozenset(map(full_name, inspect.getmro(kind))) if inspect.isclass(kind) else frozenset()


_Said = tuple[str, tuple[Definition, ast.expr | None, ast.expr | None]]  # name, and what Argument takes


def _of_function(found: Definition, owner: Definition | None = None) -> list[_Said]:
    """Of a function, or with `owner` of a method of that class."""
    node = found.node
    _check_decorators(node)
    assert isinstance(node, ast.FunctionDef)
    listed = [*node.args.posonlyargs, *node.args.args]
    defaults = [*[None] * (len(listed) - len(node.args.defaults)), *node.args.defaults]
    both = [*zip(listed, defaults, strict=True), *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    return [(arg.arg, (found, arg.annotation, default)) for arg, default in both[1 if owner else 0 :]]


def _of_class(sources: Sources, found: Definition) -> list[_Said]:
    for owner in _lineage(sources, found):
        methods = {node.name: node for node in owner.node.body if isinstance(node, ast.FunctionDef)}
        dataclass = _check_decorators(owner.node)
        if "__new__" in methods:
            raise Unreadable(owner.node.name)
        if "__init__" in methods:
            return _of_function(Definition(owner.module, methods["__init__"]), owner)
        if dataclass:
            return _fields(sources, found)
    return []


def _fields(sources: Sources, found: Definition) -> list[_Said]:
    """Of a dataclass: its own and its bases'. Raises Unreadable where one is more than a name with a default."""
    taken: dict[str, Any] = {}
    for owner in reversed(list(_lineage(sources, found))):
        if not _check_decorators(owner.node):
            continue
        for node in owner.node.body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            if isinstance(node.value, ast.Call) or "ClassVar" in ast.unparse(node.annotation):
                raise Unreadable(owner.node.name)
            taken[node.target.id] = owner, node.annotation, node.value
    return list(taken.items())


def _lineage(sources: Sources, found: Definition) -> Iterator[Definition]:
    """A class and its bases in the order in which Python asks them, but for those that take nothing."""
    yield found
    assert isinstance(found.node, ast.ClassDef)
    for base in found.node.bases:
        value = sources.evaluated(base, found.module)
        if not isinstance(typing.get_origin(value) or value, type):  # a NamedTuple is made by a function
            raise Unreadable(found.node.name)
    for kind in sources.value(found.module.name, found.node.name).__mro__[1:]:
        if kind.__module__ not in ("abc", "builtins", "typing"):
            yield sources.definition(kind.__module__, kind.__name__)
        elif kind.__name__ not in ("ABC", "object", "Generic", "Protocol"):
            raise Unreadable(found.node.name)


def _check_decorators(node: ast.ClassDef | ast.FunctionDef) -> bool:
    """Whether a class is a dataclass. Raises Unreadable for a decorator or a metaclass of unknown effect."""
    names = set()
    for decorator in node.decorator_list:
        decorator = decorator.func if isinstance(decorator, ast.Call) else decorator
        names.add(decorator.attr if isinstance(decorator, ast.Attribute) else getattr(decorator, "id", ""))
    if names - TRANSPARENT - {"dataclass"} or (isinstance(node, ast.ClassDef) and node.keywords):
        raise Unreadable(node.name)
    return "dataclass" in names
