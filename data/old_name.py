"""``import data`` in a checkout, for one release: the modules of ldm.data themselves, under the name that they had."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def stand_in() -> None:
    """Make `data` an alias of ldm.data, and data.X of ldm.data.X, so that no module is loaded twice."""
    sys.modules["data"] = import_module("ldm.data")
    if not any(isinstance(finder, _OldName) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OldName())


class _OldName(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith("data."):
            return None
        own = import_module(f"ldm.{name}").__spec__
        return ModuleSpec(name, self, loader_state=own)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[f"ldm.{spec.name}"]

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = module.__spec__.loader_state  # its own, in place of the one it was found by here
