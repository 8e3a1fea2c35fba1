"""Braces in names of shards, bounded before anything is expanded: a short text can name more than memory holds."""

import re
from collections.abc import Iterator
from itertools import pairwise

from braceexpand import braceexpand

from ldm.data.user_error import UserError

MAX_NAMES = 1 << 20
MAX_CHARS = 1 << 28  # of all names together, roughly
MAX_TEXT_CHARS = 1 << 18
MAX_DEPTH = 8
RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.-?(\d{1,18}))?")
LETTERS = re.compile(r"[A-Za-z]\.\.[A-Za-z](?:\.\.-?\d{1,18})?")
NUM_LETTERS = 52


def expand_braces(text: str) -> Iterator[str]:
    """The names that a text with braces stands for. Raises ValueError for too many, or braces that do not match."""
    depth = deepest = 0
    for letter in text:
        depth += (letter == "{") - (letter == "}")
        deepest = max(deepest, depth)
        if depth < 0:
            break
    if depth:
        raise UserError("its braces do not match")
    if deepest > MAX_DEPTH or len(text) > MAX_TEXT_CHARS:
        raise UserError(f"braces in braces, {MAX_DEPTH} deep at most, and {MAX_TEXT_CHARS} characters")
    names = _count(text)
    if names > MAX_NAMES or names * len(text) > MAX_CHARS:
        raise UserError(f"it stands for {names} names, {MAX_NAMES} at most")
    return braceexpand(text, escape=False)


def _count(text: str) -> int:
    """How many names a text of matching braces stands for."""
    product, depth, start = 1, 0, 0
    for place, letter in enumerate(text):
        if letter == "{":
            start = start if depth else place + 1
            depth += 1
        elif letter == "}":
            depth -= 1
            product *= 1 if depth else _count_group(text[start:place])
    return product


def _count_group(text: str) -> int:
    """The same for what stands between two braces."""
    numbers = RANGE.fullmatch(text)
    if numbers:
        return abs(int(numbers[2]) - int(numbers[1])) // (int(numbers[3] or 1) or 1) + 1
    if LETTERS.fullmatch(text):
        return NUM_LETTERS
    depth, commas = 0, [-1]
    for place, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if letter == "," and not depth:
            commas.append(place)
    return sum(_count(text[start + 1 : end]) for start, end in pairwise([*commas, len(text)]))
