"""Names of modules, read from their source without running it: torch, which most of them import, takes seconds.

Classes become stand-ins of the same name, with those of their bases: annotations are made of these as of the real ones.
"""

import ast
import importlib
import sys
import types
import typing
from pathlib import Path
from typing import Any, NamedTuple


class Unreadable(Exception):
    """Raised if the source is not enough, so that the module has to be imported."""


class Definition(NamedTuple):
    """A class or a function, and the module that defines it."""

    module: "Module"
    node: ast.ClassDef | ast.FunctionDef


class _Import(NamedTuple):
    module: str
    name: str | None  # None is the module itself


class Module:
    """The top level of one module: each name with its statement, an expression or an import."""

    def __init__(self, name: str, path: Path):
        self.name = name
        self.package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.names: dict[str, ast.ClassDef | ast.FunctionDef | ast.expr | _Import] = {}
        self.stars: list[str] = []  # modules of which it takes all
        self._read(ast.parse(path.read_bytes()).body)

    def _read(self, statements: list[ast.stmt]) -> None:
        for node in statements:
            match node:
                case ast.ClassDef() | ast.FunctionDef():
                    self.names[node.name] = node
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self.names[name] = value
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    self.names[name] = value
                case ast.Import(names=aliases):
                    for alias in aliases:
                        top = alias.name.partition(".")[0]
                        self.names[alias.asname or top] = _Import(alias.name if alias.asname else top, None)
                case ast.ImportFrom(names=aliases):
                    source = self._absolute(node)
                    self.stars += [source for alias in aliases if alias.name == "*"]
                    self.names |= {alias.asname or alias.name: _Import(source, alias.name) for alias in aliases}
                case ast.If(body=body, orelse=otherwise):
                    self._read([*otherwise, *body])
                case ast.Try(body=body, handlers=handlers):
                    self._read([*(inner for handler in handlers for inner in handler.body), *body])

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        above = self.package.rsplit(".", node.level - 1)[0]
        return f"{above}.{node.module}" if node.module else above


class _Namespace:
    """A module in an annotation: ``nn`` of ``nn.Module``."""

    def __init__(self, sources: "Sources", name: str):
        self._sources, self._name = sources, name

    def __getattr__(self, name: str) -> Any:
        return self._sources.value(self._name, name)


class _Scope(dict):
    """The names of a module for `eval`; what it does not have are Python's own."""

    def __init__(self, sources: "Sources", module: Module):
        super().__init__()
        self._sources, self._module = sources, module

    def __missing__(self, name: str) -> Any:
        if name not in self._module.names and not self._module.stars:
            raise KeyError(name)
        return self._sources.value(self._module.name, name)


class Sources:
    """Modules as they were when they were first asked for."""

    def __init__(self) -> None:
        self._modules: dict[str, Module | None] = {}
        self._values: dict[tuple[str, str], Any] = {}

    def module(self, name: str) -> Module | None:
        """The module of this name; None for one that is not there or not written in Python."""
        if name not in self._modules:
            path = _path(name)
            try:
                self._modules[name] = Module(name, path) if path else None
            except (SyntaxError, ValueError):  # importing it gives a better error
                self._modules[name] = None
        return self._modules[name]

    def definition(self, module: str, name: str) -> Definition:
        """The class or function that `name` of a module is, wherever it is defined. Raises Unreadable."""
        found = self._find(module, name, ())
        if not isinstance(found, Definition):
            raise Unreadable(f"{module}.{name}")
        return found

    def value(self, module: str, name: str) -> Any:
        """What `name` of a module stands for in an annotation. Raises Unreadable."""
        key = module, name
        if key not in self._values:
            found = self._find(module, name, ())
            self._values[key] = self._stand_in(found) if isinstance(found, Definition) else found
        return self._values[key]

    def evaluated(self, node: ast.expr, module: Module) -> Any:
        """The value of an annotation. Raises Unreadable."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        try:
            return eval(compile(ast.Expression(node), module.name, "eval"), {}, _Scope(self, module))
        except (TypeError, NameError, AttributeError, SyntaxError, RecursionError) as error:
            raise Unreadable(f"{module.name}: {ast.unparse(node)}") from error

    def _find(self, module: str, name: str, asked: tuple[tuple[str, str], ...]) -> Any:
        """A Definition, or a value of the standard library, or what is neither, as a class without bases."""
        if module.partition(".")[0] in sys.stdlib_module_names:
            try:
                return getattr(importlib.import_module(module), name)
            except (AttributeError, ImportError) as error:
                raise Unreadable(f"{module}.{name}") from error
        source = self.module(module)
        if source is None or (module, name) in asked:
            return self._submodule(module, name)
        asked = (*asked, (module, name))
        node = source.names.get(name)
        if isinstance(node, _Import):
            if node.name is not None:
                return self._find(node.module, node.name, asked)
            standard = node.module.partition(".")[0] in sys.stdlib_module_names
            return importlib.import_module(node.module) if standard else _Namespace(self, node.module)
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            return Definition(source, node)
        if isinstance(node, ast.expr):
            if isinstance(node, ast.Name) and node.id in source.names:  # another name of the same
                return self._find(module, node.id, asked)
            return self.evaluated(node, source)
        for other in source.stars:
            found = self._find(other, name, asked)
            if not isinstance(found, type) or found.__module__ != other or isinstance(found, Definition):
                return found
        return self._submodule(module, name)

    def _submodule(self, module: str, name: str) -> Any:
        whole = f"{module}.{name}"
        return _Namespace(self, whole) if _spec(whole) else type(name, (), {"__module__": module})

    def _stand_in(self, found: Definition) -> type:
        module, node = found
        if not isinstance(node, ast.ClassDef):
            raise Unreadable(f"{module.name}.{node.name}")
        bases = [self.evaluated(base, module) for base in node.bases]
        if any(base is typing.TypedDict or typing.is_typeddict(base) for base in bases):
            return self._typed_dict(module, node, bases)
        named = {"__module__": module.name, "__qualname__": node.name}
        try:
            return types.new_class(node.name, _classes(bases), {}, lambda namespace: namespace.update(named))
        except TypeError:  # bases of several metaclasses
            return type(node.name, (), named)

    def _typed_dict(self, module: Module, node: ast.ClassDef, bases: list[Any]) -> type:
        fields: dict[str, Any] = {}
        for base in bases:
            fields |= getattr(base, "__annotations__", {})
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                fields[field.target.id] = self.evaluated(field.annotation, module)
        made: Any = typing.TypedDict(node.name, fields)  # type: ignore[misc]  # known from here on
        made.__module__ = module.name
        return made


def _classes(bases: list[Any]) -> tuple[type, ...]:
    return tuple(base for base in bases if isinstance(base, type))


def _path(name: str) -> Path | None:
    origin = getattr(_spec(name), "origin", None)
    return Path(origin) if origin and origin.endswith(".py") and Path(origin).is_file() else None


def _spec(name: str) -> Any:
    """Where a module lies, found as an import finds it, but that the packages above it are not run."""
    places, above, spec = None, "", None
    for part in name.split("."):
        above = f"{above}.{part}" if above else part
        found = (finder.find_spec(above, places) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        spec = next((each for each in found if each), None)
        if spec is None:
            return None
        places = spec.submodule_search_locations or []
    return spec
