"""Networks that an untrusted file describes, built on the meta device first: no larger than the weights beside it.

A width of eight million is a few bytes of text; the memory it asks for is taken only when a file holds such weights.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from ldm.errors import UserError

SLACK_TENSORS = 64  # and twice as many as the file has: parts may share or leave out some
SLACK_ELEMENTS = 1 << 26  # tables that no file holds, such as those of positions
MODULES_PER_TENSOR = 32
NONSENSE = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    RecursionError,
    MemoryError,
)

Shapes = Mapping[str, Sequence[int]]


class TooLarge(UserError):
    """The model that is being built has become larger than its file of weights."""


class _Budget:
    """How many tensors, elements and modules may still be registered."""

    def __init__(self, shapes: Shapes):
        self.tensors = 2 * len(shapes) + SLACK_TENSORS
        self.elements = 2 * sum(torch.Size(shape).numel() for shape in shapes.values()) + SLACK_ELEMENTS
        self.modules = MODULES_PER_TENSOR * self.tensors

    def take(self, registered: Tensor | nn.Module | None) -> None:
        if isinstance(registered, Tensor):
            self.tensors -= 1
            self.elements -= registered.numel()
        elif registered is not None:
            self.modules -= 1
        if min(self.tensors, self.elements, self.modules) < 0:
            raise TooLarge("more layers or larger ones than its weights have")


_budget: ContextVar[_Budget | None] = ContextVar("budget", default=None)


@contextmanager
def uncounted() -> Iterator[None]:
    """What is registered within, such as a frozen encoder with its own files, does not count towards the budget."""
    before = _budget.set(None)
    try:
        yield
    finally:
        _budget.reset(before)


def check_described(build: Callable[[], nn.Module], shapes: Shapes, source: str) -> dict[str, Tensor]:
    """The state, on the meta device, of what `build()` makes of a description found at `source`.

    Raises ValueError naming it as soon as that is more than weights of these `shapes` can fill, or cannot be built.
    """
    budget = _Budget(shapes)
    before = _budget.set(budget)

    def count(module: nn.Module, name: str, registered: Any) -> None:
        if _budget.get() is budget:
            budget.take(registered)

    handles = [
        register(count)
        for register in (
            hooks.register_module_parameter_registration_hook,
            hooks.register_module_buffer_registration_hook,
            hooks.register_module_module_registration_hook,
        )
    ]
    try:
        with torch.device("meta"):
            return build().state_dict()
    except TooLarge as error:
        raise UserError(f"{source}: describes {error}") from error
    except UserError:
        raise
    except NONSENSE as error:
        raise UserError(f"{source}: describes nothing that can be built ({line(error)})") from error
    finally:
        for handle in handles:
            handle.remove()
        _budget.reset(before)


def line(error: BaseException) -> str:
    """An error's message as one line of limited length."""
    return " ".join(str(error).split())[:300] or type(error).__name__
