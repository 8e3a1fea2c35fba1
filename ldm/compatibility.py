"""What a branch shares with its parent, and the members of an ensemble with each other, told from their trees.

A network's weights fit wherever their shapes do; what they mean depends on keys that have no shape.
"""

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from ldm.config import resolve_target
from ldm.errors import UserError

Tree = Mapping[str, Any]

# Groups that say what the network is shown and what its output means.
MEANING = ("precond", "schedule", "conditioner", "network")
# Keys of these for paths, speed or the course of training, which do not change what weights mean.
FREE = frozenset(
    {
        "path",
        "tokenizer",
        "dtype",
        "memo_captions",
        "drop_prob",
        "dropout",
        "noise_level",
        "checkpoint_activations",
    }
)
# Keys of a condition that say how a network sees it, not what it is.
FORM = frozenset({"width", "depth", "slot", "slots", "max_tokens", "zero_null", "has_null"})


def differences(one: Tree, other: Tree, groups: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    """{key: (value in `one`, value in `other`)} of the relevant keys in `groups` that differ; {} if they agree.

    A key that a saved tree lacks is at its constructor's default.
    """
    found = {}
    for group in groups:
        first, second = (dict(_told(tree.get(group), group)) for tree in (one, other))
        for key in [*first, *(key for key in second if key not in first)]:
            if first.get(key) != second.get(key):
                found[key] = (first.get(key), second.get(key))
    return found


def _told(node: Any, where: str) -> Iterable[tuple[str, Any]]:
    """Keys and values of a node and those below it, its target first; of a path only whether it is given."""
    if not isinstance(node, Mapping):
        yield where, node
        return
    target = node.get("_target_")
    if target is not None:
        yield where, target.rpartition(".")[2]
        known = inspect.signature(resolve_target(target, where)).parameters.values()
        node = {p.name: p.default for p in known if p.default is not inspect.Parameter.empty} | dict(node)
    for key, value in node.items():
        if key == "path":
            yield f"{where}.{key}", "its own" if value is None else "a folder"
        elif key not in FREE and not key.startswith("_"):
            yield from _told(list(value) if isinstance(value, tuple) else value, f"{where}.{key}")


def is_part(tree: Tree) -> bool:
    """Whether a tree trains an expert for a part of the noise."""
    expert = tree.get("expert") or {}
    return list(expert.get("node") or [0, 0]) != [0, 0] or bool(expert.get("exclude") or expert.get("interval"))


def check_branch(tree: Tree, parent: Tree, branch: str) -> None:
    """Raises ValueError naming the first key by which weights of `parent` would mean something else in `tree`.

    A whole model may be given other conditions and image sizes than its parent; an expert, which is sampled together
    with others, may not, and divides the parent's noise. What ``branch_changes`` names may differ.
    """
    if (tree["task"] or {}).get("_target_") != (parent["task"] or {}).get("_target_"):
        raise UserError(f"branch={branch}: another kind of run, {_kind(parent)} where this one is {_kind(tree)}")
    expert, allowed = is_part(tree), tree["branch_changes"] or []
    groups = [*MEANING, *(["noise"] if expert else [])] if tree["network"] else ["autoencoder"]
    unknown = [name for name in allowed if name not in groups]
    if unknown:
        raise UserError(f"branch_changes={unknown[0]}: there are {', '.join(groups)}")
    adapter = ["adapter"] if parent.get("adapter") else []  # a parent that has none is given one
    found = differences(tree, parent, [*(group for group in groups if group not in allowed), *adapter])
    for key in ("image_size", "crop_size") if expert else ():
        if tree.get(key) != parent.get(key):
            found[key] = (tree.get(key), parent.get(key))
    if not expert:
        names = [_conditions(tree), _conditions(parent)]
        found = {key: pair for key, pair in found.items() if not _only_in_one(key, *names)}
    for key, (here, there) in found.items():
        group = key.partition(".")[0]
        way = f", or say branch_changes=[{group}] if that is meant" if group in groups else ""
        raise UserError(
            f"branch={branch}: {key} is {here!r} and in the parent {there!r}, for which its weights mean something "
            f"else; take the parent's{way}"
        )


def _kind(tree: Tree) -> str:
    return str((tree["task"] or {}).get("_target_")).rpartition(".")[2]


def _conditions(tree: Tree) -> Collection[str]:
    return (tree.get("conditioner") or {}).keys()


def _only_in_one(key: str, own: Collection[str], parents: Collection[str]) -> bool:
    """Whether a key belongs to a condition that is new, or given up; or says that there are none."""
    group, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    return group == "conditioner" and (not name or (name in own) != (name in parents))


def check_members(names: Sequence[str], trees: Sequence[Tree]) -> None:
    """Raises ValueError naming the first key in which members of an ensemble are not one model.

    They are routed by sigma, each under its own conditions: parametrisation, network, schedule and the form in which it
    sees a condition may differ, and one may lack a condition. What a condition means may not.
    """
    for (one, first), (other, second) in combinations(zip(names, trees, strict=True), 2):
        own, others = _conditions(first), _conditions(second)
        found = differences(first, second, ("conditioner",))
        found = {
            key: pair
            for key, pair in found.items()
            if not _only_in_one(key, own, others) and key.rpartition(".")[2] not in FORM
        }
        for key in ("image_size", "crop_size"):
            if first.get(key) != second.get(key):
                found[key] = (first.get(key), second.get(key))
        for key, (here, there) in found.items():
            raise UserError(f"members: {key} is {here!r} in {one} and {there!r} in {other}; they have to agree")


def names_of(runs: Iterable[Path]) -> list[str]:
    """Names of runs to tell them apart by: their folders', or their paths where two are called the same."""
    runs = list(runs)
    short = [run.name for run in runs]
    return short if len(set(short)) == len(short) else [str(run) for run in runs]
