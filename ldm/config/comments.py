"""The comments in the YAML files of conf/, which say what a key means: by the keys' paths, and beside keys again."""

import textwrap
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import yaml

Path = tuple[str, ...]


def header(text: str) -> list[str]:
    """The lines of comment that a file begins with, but for Hydra's own."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return [line for line in lines if line and not line.startswith("@package")]


def comments(text: str) -> dict[Path, str]:
    """What a file says of its keys, beside them or above. Items of a list, as of defaults, count as the list's keys."""
    keys: dict[int, list[Path]] = {}
    for path, place in _places(yaml.compose(text)):
        keys.setdefault(place, []).append(path)
    ends = {token.end_mark.line: token.end_mark.column for token in yaml.scan(text) if _has_text(token)}
    found: dict[Path, str] = {}
    above: list[str] = []
    for number, line in enumerate(text.splitlines()):
        rest = line[ends.get(number, 0) :].strip()
        said = [rest.removeprefix("#").strip()] if rest.startswith("#") else []
        if number in keys:
            if above or said:
                found[_subject(keys[number])] = " ".join([*above, *said])
            above = []
        elif number not in ends and min(keys, default=0) < number:  # of those before, see header
            above = [*above, *said]
    return found


def with_comments(tree: Mapping[str, Any], found: Mapping[Path, str], width: int) -> str:
    """A tree as YAML, each key with its comment; lines longer than `width` have it above them."""
    text = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)
    lines = text.splitlines()
    said = {line: found[path] for path, line in _places(yaml.compose(text)) if path in found}
    column = 2 + max((len(lines[number]) for number in said if len(lines[number]) <= 40), default=0)
    shown = []
    for number, line in enumerate(lines):
        if number not in said:
            shown.append(line)
        elif max(column, len(line)) + 4 + len(said[number]) <= width:
            shown.append(f"{line:<{column}}# {said[number]}")
        else:
            start = f"{' ' * (len(line) - len(line.lstrip()))}# "
            above = textwrap.fill(said[number], width, initial_indent=start, subsequent_indent=start)
            shown += [above, line]
    return "\n".join(shown)


class _Dumper(yaml.SafeDumper):
    """Lists of plain values in one line."""


def _in_a_line(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    flat = not any(isinstance(item, dict | list) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flat)


_Dumper.add_representer(list, _in_a_line)


def _has_text(token: yaml.Token) -> bool:
    return token.start_mark.index != token.end_mark.index


def _places(node: yaml.Node | None, above: Path = ()) -> Iterator[tuple[Path, int]]:
    """The path of each key, and its line."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*above, str(key.value))
            yield path, key.start_mark.line
            yield from _places(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _places(item, above)


def _subject(paths: list[Path]) -> Path:
    """The key on a line that the line's comment describes: the first, or its only key's only key."""
    chain = all(inner[:-1] == outer for outer, inner in pairwise(paths))
    return paths[-1] if chain else paths[0]
