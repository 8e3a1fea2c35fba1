"""The steps that a report starts itself: their words, ``stage=`` among them, and the file that says what of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ldm.config.registry import root
from ldm.errors import UserError
from ldm.files import read_json

T = TypeVar("T")


def words_of_step(arguments: list[str], *keys: str) -> dict[str, str]:
    """The words of a step of a report, which starts it itself: each of `keys`, once, and no others; seed is a number.

    Raises UserError for others: somebody has said ``stage=`` who does not know what it is for.
    """
    words = dict(word.partition("=")[::2] for word in arguments)
    if len(arguments) != len(keys) or set(words) != set(keys) or not words.get("seed", "0").isdecimal():
        named = " ".join(f"{key}=..." for key in keys)
        raise UserError(f"stage: is of the steps that this command starts itself, by {named}; leave it out")
    return words


def tree_of_step(config_name: str, path: str) -> dict[str, Any]:
    """What a report of conf/<config_name>.yaml has written down for its steps. Raises UserError for any other file."""
    if not Path(path).is_file():
        raise UserError(f"tree={path}: no such file; scripts/{config_name}.py writes it, and starts this step itself")
    tree, (own, chosen) = read_json(Path(path)), root(config_name)
    missing = [key for key in (*own, *chosen) if key not in tree]
    if missing:
        raise UserError(
            f"tree={path}: has no {missing[0]!r}; not what scripts/{config_name}.py writes for its steps, or older"
        )
    return tree


def named_in_step(key: str, name: str, among: Mapping[str, T]) -> T:
    """The one of that name. Raises UserError naming the `key` of the step's words for a name that is not there."""
    if name not in among:
        raise UserError(f"{key}={name}: the file of tree= has none of that name; there are {', '.join(among)}")
    return among[name]
