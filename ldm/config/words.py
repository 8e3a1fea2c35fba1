"""The words of a command line: which are literal text, which are paths, what is given twice, which jobs they sweep."""

import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from ldm.config.keys import LISTS, NEVER_EMPTY, NEVER_LEFT_OUT, PATHS, SHARDS, bare, is_literal, is_path
from ldm.config.overrides import parse
from ldm.config.plugins import CONF, use_plugins
from ldm.errors import UserError

MAX_BRACES = 20  # within each other
# Of these a sweep takes several runs, `first_stage=runs/a,runs/b`; in other paths a comma is a comma.
SWEPT_PATHS = ("first_stage", "branch")
NOT_OF_FILES = ("plugins", "run", "runs_dir", "overwrite", "branch")


def split_literal(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Separate ``prompt=...`` and path keys, whose text is literal, from the overrides Hydra parses."""
    literal, overrides = {}, []
    for argument in arguments:
        key, separator, text = argument.partition("=")
        if is_literal(key.lstrip("+")) and separator and text != "null":
            literal[key] = text
        else:
            overrides.append(argument)
    return literal, overrides


def take_plugins(arguments: list[str], known: bool = True) -> list[str]:
    """The words without ``plugins=[a,b]``: parts of these packages, and of no others, may be built from here on.

    Raises UserError for a package that is none, and for the key where it is not `known`.
    """
    names: list[str] = []
    rest = []
    for argument in arguments:
        key, _, text = argument.partition("=")
        if bare(argument) != "plugins":
            rest.append(argument)
        elif key != "plugins" or not known:
            raise UserError(f"{argument}: no such key{'; write plugins=[package]' if known else ''}")
        elif text not in ("", "null"):
            given = meant(key, text)
            names += given if isinstance(given, list) else [given]
    use_plugins(names)
    return rest


def check_once(arguments: list[str]) -> None:
    """Raises ValueError for a key that is given more than once: which one was meant is unknown."""
    counts = Counter(bare(argument) for argument in arguments)
    for key, count in counts.items():
        if key and count > 1:
            example = "{...}" if key == "phrases" else "a-{0..5}.tar" if is_path(key) else ""
            braces = f"; the shell expands braces that are not quoted: '{key}={example}'" if example else ""
            raise UserError(f"{key} is given {count} times{braces}; give it once")


def check_words_of_file(text: str, where: str) -> None:
    """Raises UserError, which `where` begins, for words of train.py that are not a file's to say: it may be anybody's.

    They are those that would run its author's code, or write where something else may lie. Nor may one be there twice.
    """
    _check_once(text.split(), where)
    for word in text.split():
        if bare(word) in NOT_OF_FILES:
            raise UserError(f"{where}: {bare(word)}= is not for a file to say; leave it out")


def _check_once(words: list[str], where: str) -> None:
    """check_once of words that are not the command line's own; errors begin with `where`."""
    try:
        check_once(words)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def added_words(text: str | None, where: str, kept: Collection[str]) -> list[str]:
    """The words of a text that is put behind those of a step of a longer job.

    Raises UserError, which `where` begins, for a key that is there twice, and for one of those `kept`: by them the job
    finds what the step makes.
    """
    words = (text or "").split()
    _check_once(words, where)
    for word in words:
        if bare(word) in kept:
            raise UserError(f"{where}: {bare(word)}= says where this command looks for what is made; leave it out")
    return words


def overriding(words: Iterable[str]) -> list[str]:
    """Words in which a later one overrides an earlier one of the same key, for commands that add words in front."""
    return list({bare(word): word for word in words}.values())


def meant(key: str, text: str, several: bool = False) -> Any:
    """The value of a literal text after ``key=``: a path with its home, a list where the key takes one, else the text.

    Raises ValueError for a path that is empty, alone or in a list, for a home directory of no user, for braces too deep
    within each other, and for quotes that the shell has not removed.
    """
    key = key.lstrip("+")
    if (key in LISTS or several) and re.fullmatch(r"\[.*\]", text, re.DOTALL) and not _exists(text):
        items = [_unquoted(item.strip()) for item in _split(text[1:-1])] if text[1:-1].strip() else []
        if "" in items:
            raise UserError(f"{key}={text[:200]}: one of the list is empty (a variable that is not set?)")
        return [meant(key, item) for item in items]
    if not text and key in NEVER_EMPTY:
        way = f"{key}={NEVER_LEFT_OUT[key]}" if key in NEVER_LEFT_OUT else f"give it, or leave {key}= out"
        raise UserError(f"{key}=: nothing is given after it (a variable that is not set?); {way}")
    if not is_path(key) or (several and key not in LISTS):
        return text
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" and not _exists(text):
        more = "; several are [a.tar,b.tar] or '{a,b}.tar'" if key in SHARDS else ""
        raise UserError(f"{key}={text[:200]}: text after {key}= is literal, so leave the inner quotes out{more}")
    if _depth(text) > MAX_BRACES:
        raise UserError(f"{key}={text[:80]}...: braces within more than {MAX_BRACES} others")
    if not text.startswith("~"):
        return text
    try:
        found = str(Path(text).expanduser())
    except RuntimeError as error:
        raise UserError(
            f"{key}={text[:200]}: {str(error).rstrip('.').lower()}; a file whose name begins with ~ is ./{text[:80]}"
        ) from error
    return found if key in PATHS or key.startswith("given.") else text


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long for a name
        return False


def _depth(text: str) -> int:
    deepest = depth = 0
    for letter in text:
        depth += (letter == "{") - (letter == "}")
        deepest = max(deepest, depth)
    return deepest


def _split(text: str) -> list[str]:
    """Split at the commas outside of braces, brackets and quotes."""
    items, depth, quote = [""], 0, ""
    for letter in text:
        if letter in "\"'":
            quote = letter if not quote else "" if quote == letter else quote
        depth += 0 if quote else (letter in "{[") - (letter in "}]")
        if letter == "," and depth == 0 and not quote:
            items.append("")
        else:
            items[-1] += letter
    return items


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def expand_sweep(arguments: list[str]) -> list[tuple[list[str], list[str]]]:
    """Jobs of a multirun: the product over comma-separated values, each as (its arguments, its swept overrides)."""
    check_once(arguments)
    literal, overrides = split_literal(arguments)
    choices, fixed = [], []
    for key, text in literal.items():
        if key in SWEPT_PATHS and "," in text and not _exists(text):
            choices.append([f"{key}={part}" for part in text.split(",")])
        else:
            fixed.append(f"{key}={text}")
    for text, override in zip(overrides, parse(overrides), strict=True):
        if override.is_sweep_override():
            name = override.get_key_element()
            choices.append([f"{name}={value}" for value in override.sweep_string_iterator()])
        else:
            fixed.append(text)
    return [([*fixed, *swept], list(swept)) for swept in itertools.product(*choices)]


def run_name(arguments: list[str], swept: Sequence[str] = ()) -> str:
    """Default run name: the experiment, the expert's node, the sweep's overrides; one name per job of a sweep.

    In a sweep `run` takes the experiment's place. A value null is as if it was not given.

    >>> run_name(["experiment=quickstart/expert", "expert.node=[1,1]"])
    'quickstart-expert-1-1'
    """
    values = {key: value for key, _, value in (word.partition("=") for word in arguments) if value != "null"}
    name = values.get("run") or values.get("experiment", "run")
    parts = ("expert.node", "expert.interval", "expert.exclude")
    node, interval, hole = (re.findall(r"[\w.]+", values.get(key, "")) for key in parts)
    words = [name, *node, *interval, *(["not", *hole] if hole else [])]
    for override in swept:
        key, _, value = override.partition("=")
        if key in parts or (key == "experiment" and name == value):  # in the name already
            continue
        group_choice = (CONF / key).is_dir()
        value = Path(value).name if key in SWEPT_PATHS else value
        words.append(value if group_choice else f"{key.rsplit('.', 1)[-1]}_{value}")
    return re.sub(r"[^A-Za-z0-9_.]+", "-", "-".join(words)).strip("-")
