"""The ``key=value`` words of the commands that have no tree: benchmark.py and chaos.py."""

from typing import Any

from ldm.errors import UserError


def parse(words: list[str], defaults: dict[str, Any]) -> dict[str, Any]:
    """`defaults` with what the words say, in each default's type. Raises ValueError naming a wrong word."""
    options = dict(defaults)
    for word in words:
        key, _, text = word.partition("=")
        if key not in defaults:
            raise UserError(f"{key}: no such key; there are {', '.join(defaults)}")
        kind = type(defaults[key])
        if kind is bool and text not in ("true", "false"):
            raise UserError(f"{key}={text}: expected true or false")
        try:
            options[key] = text == "true" if kind is bool else kind(text)
        except ValueError as error:
            raise UserError(f"{key}={text}: expected a whole number") from error
    return options
