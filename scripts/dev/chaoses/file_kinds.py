"""A kind of file that comes from outside: as it should be, how it is spoilt, and the code that reads it."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaoses.mutations import Mutation

_folder: Path | None = None


@dataclass(frozen=True)
class Kind:
    """`whole` makes the file as it should be; `read(folder, content, how)` reads it spoilt, in a folder that is empty.

    `how` is the mutation that spoilt it. `read` returns what is wrong with what was read; what it may raise is a
    ValueError or an OSError of one line.
    """

    whole: Callable[[random.Random], bytes]
    mutations: Sequence[Mutation]
    read: Callable[[Path, bytes, Mutation], list[str]]


def begin(folder: Path) -> None:
    """Say where `scratch` is from now on."""
    global _folder
    _folder = folder


def scratch(name: str) -> Path:
    """A folder for what is made once."""
    path = _folder / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def without_address(reasons: Sequence[str]) -> list[str]:
    """What is wrong with the reasons that people read: they name no place in memory."""
    return [f"a memory address in {reason!r}" for reason in reasons if " at 0x" in reason]
