"""Trees as files: written with a run, and read back as untrusted data."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from ldm.config.keys import MEASURES, root_type
from ldm.config.plugins import CONF, check_needed
from ldm.config.refusals import first_line
from ldm.config.registry import root
from ldm.config.upgrades import upgrade
from ldm.config.validation import check_root_key, validate
from ldm.errors import UserError
from ldm.files import read_text

MAX_TREE_DEPTH = 50
MAX_TREE_BYTES = 100_000  # of a saved tree; they have a few thousand


def dump(tree: dict[str, Any]) -> str:
    """The tree as YAML text, as saved in a run's folder."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


class _PlainLoader(yaml.SafeLoader):
    """YAML loader that refuses aliases, which can grow exponentially, deep nesting, numbers slow to parse, and a key
    that is given twice.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases")
        self.depth += 1
        if self.depth > MAX_TREE_DEPTH:
            raise yaml.YAMLError("it is nested too deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, yaml.ScalarNode) and node.tag != "tag:yaml.org,2002:str" and len(node.value) > 100:
            raise yaml.YAMLError("it has an endless number")
        if isinstance(node, yaml.MappingNode):
            counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            twice = next((name for name, count in counts.items() if count > 1), None)
            if twice is not None:
                raise yaml.YAMLError(f"it has the key {twice[:100]!r} twice")
        return node


def load_plain(path: Path, what: str) -> dict[str, Any]:
    """Read an untrusted YAML mapping as data. Raises ValueError saying that it is not `what`."""
    try:
        tree = yaml.load(read_text(path, MAX_TREE_BYTES), _PlainLoader)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not {what} ({first_line(error)})") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: not {what}")
    return tree


def named_file(key: str, given: str, group: str) -> Path:
    """The YAML of a user's own, or of a name in conf/`group`, for `key`=`given`. Raises UserError for neither."""
    own, named = Path(os.path.expanduser(given)), CONF / group / f"{given}.yaml"
    if own.suffix == ".yaml" and own.is_file():
        return own
    if named.is_file():
        return named
    names = ", ".join(sorted(path.stem for path in named.parent.glob("*.yaml")))
    raise UserError(f"{key}={given}: neither a file that ends in .yaml nor one of {names}")


def load_tree(path: Path) -> dict[str, Any]:
    """Read a tree that came with a checkpoint: data without aliases or interpolation, checked by the same registry.

    Only what a training run is made of may be built of it, not what it is measured with. Raises ValueError naming the
    file and the key.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file, which every run's folder has; name one, or put the file back")
    tree = load_plain(path, "a run's configuration")
    check_needed(tree, str(path))
    tree = upgrade(tree)
    keys, choices = root("config")
    try:
        for key, default in keys.items():
            if key in tree:
                check_root_key(key, root_type("config", key, default), tree[key])
        for group in choices.keys() & tree.keys():
            _check_group(group, tree[group], several=isinstance(choices[group], list))
        validate(tree, among=choices.keys() - MEASURES)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return tree


def _check_group(group: str, node: Any, several: bool) -> None:
    """Raises ValueError unless the value is null or a part or, with `several`, a mapping of names to parts."""
    parts = list(node.values()) if several and isinstance(node, dict) else [node]
    if node and not all(isinstance(part, dict) and "_target_" in part for part in parts):
        raise UserError(f"{group}={repr(node)[:80]}: no part that can be built")
