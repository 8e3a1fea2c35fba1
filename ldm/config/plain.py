"""Parts of a tree without the names of code, {option: keys}, for files that travel; read back as data of anyone.

What may be built stands in conf/ alone: a file only says which option of a group, and with which plain values.
"""

import math
from collections.abc import Mapping
from typing import Any

from ldm.config.keys import MEASURES, is_path, root_type
from ldm.config.registry import groups, part_of, root
from ldm.config.validation import check_root_key, nearest, validate
from ldm.errors import UserError

CODE = ("_target_", "_partial_")
MAX_DEPTH = 10


def plain_part(group: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """{option: keys} of one part of a group; the option is one whose file in conf/ names the same code."""
    options = (o for o in groups()[group] if any(part["_target_"] == node["_target_"] for part in part_of(group, o)))
    return {next(options, group): _plain(node)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if key not in CODE}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no infinity


def part_from(group: str, plain: Any, trusted: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """One part of a group, of {option: keys}, with the code that conf/ names for that option.

    Files, and what others are measured with, are never taken from it: they must be those of `trusted`, the same part as
    this command line has it. Raises UserError, which `where` begins, for anything but an option with plain values.
    """
    check_plain(plain, where)
    if not isinstance(plain, dict) or len(plain) != 1 or not isinstance(next(iter(plain.values())), dict):
        raise UserError(f"{where}: not an option of {group} with its keys")
    [(option, keys)] = plain.items()
    if option not in groups()[group]:
        raise UserError(f"{where}={option[:80]}: no such option{nearest(option, groups()[group])}")
    for key, value in keys.items():
        if (is_path(f"{group}.{key}") or group in MEASURES) and value not in (None, (trusted or {}).get(key)):
            raise UserError(f"{where}: made with {group}.{key}={str(value)[:80]}; if you know it, say that here too")
    return _with_code(part_of(group, option)[0], keys)


def _with_code(base: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """`keys` with the code of `base`, a part in a file of conf/, and of the parts below it."""
    found = {key: base[key] for key in CODE if key in base}
    for key, value in keys.items():
        below = base.get(key)
        inner = isinstance(below, dict) and "_target_" in below and isinstance(value, dict)
        found[key] = _with_code(below, value) if inner else _number(value)
    return found


def _number(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _number(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_number(item) for item in value]
    return float(value) if value in ("inf", "-inf") else value


def check_plain(value: Any, where: str, depth: int = 0) -> None:
    """Raises UserError, which `where` begins, for values nested too deep, or with a key that could name code."""
    if depth > MAX_DEPTH:
        raise UserError(f"{where}: nested too deep")
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if str(key).startswith("_"):
            raise UserError(f"{where}.{str(key)[:80]}: names code, which no file but those of conf/ may")
        check_plain(item, f"{where}.{str(key)[:80]}", depth + 1)


def check_sample_tree(tree: Mapping[str, Any], where: str) -> None:
    """Raises UserError, which `where` begins, for what is no whole tree of conf/sample.yaml."""
    keys, choices = root("sample")
    for key in tree:
        if key not in keys and key not in choices:
            raise UserError(f"{where}: {str(key)[:80]}: no such key{nearest(key, [*keys, *choices])}")
    try:
        for key, default in keys.items():
            check_root_key(key, root_type("sample", key, default), tree[key])
        validate({group: tree[group] for group in choices})
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
