"""A plugin for mypy: what `nn.Module.__getattr__` finds is Any, in place of torch's `Tensor | Module`.

Torch's annotation fits no use: a buffer is no Module, a submodule's methods are no Tensor's. An attribute that a class
declares keeps its declared type.
"""

from collections.abc import Callable

from mypy.plugin import AttributeContext, Plugin
from mypy.types import AnyType, Type, TypeOfAny, UnionType, get_proper_type

MODULE = "torch.nn.modules.module.Module."


class TorchPlugin(Plugin):
    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        return _found if fullname.startswith(MODULE) else None


def _found(context: AttributeContext) -> Type:
    declared = get_proper_type(context.default_attr_type)
    return AnyType(TypeOfAny.special_form) if isinstance(declared, UnionType) else declared


def plugin(version: str) -> type[Plugin]:
    return TorchPlugin
