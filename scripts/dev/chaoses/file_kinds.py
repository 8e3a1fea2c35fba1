"""A kind of untrusted file: a valid one, the mutations that corrupt it, and the code that reads it."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaoses.mutations import Mutation

_folder: Path | None = None


@dataclass(frozen=True)
class Kind:
    """`whole` makes a valid file; `read(folder, content, how)` reads the corrupted one, in an empty folder.

    `how` is the mutation that corrupted it. `read` returns what is wrong with what was read; what it may raise is a
    ValueError or an OSError of one line.
    """

    whole: Callable[[random.Random], bytes]
    mutations: Sequence[Mutation]
    read: Callable[[Path, bytes, Mutation], list[str]]


def begin(folder: Path) -> None:
    """Set the folder of `scratch` from now on."""
    global _folder
    _folder = folder


def scratch(name: str) -> Path:
    """A folder for what is made once."""
    path = _folder / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def without_address(reasons: Sequence[str]) -> list[str]:
    """What is wrong with messages to users: they must not contain a memory address."""
    return [f"a memory address in {reason!r}" for reason in reasons if " at 0x" in reason]
