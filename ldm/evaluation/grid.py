"""The grid of an evaluation: lists of models, averages of weights, numbers of steps, sets of conditions and any keys of
guidance, sampler and sigmas.

Each of its cells is a curve over the scales of guidance, measured and kept as if it had been asked for alone.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ldm.asked import named_models
from ldm.config import UNCHOSEN, listed
from ldm.errors import UserError

GROUPS = ("guidance", "sampler", "sigmas")  # of which a key may have several values
CLASSES = UNCHOSEN["evaluate"]  # what keys of guidance belong to that come without a class
CURVE = "guidance.scale"  # the points of each curve


class Cell(NamedTuple):
    """One curve of a grid: its `columns` {key: value} of a table, and the `tree` that asks for it alone."""

    columns: dict[str, str | int | float]
    tree: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of its folder; empty where no key is a list."""
        return "-".join(f"{key}_{value}" for key, value in self.columns.items())


def cells(tree: Mapping[str, Any]) -> Iterator[Cell]:
    """Those of `tree` (conf/evaluate.yaml), the last key the fastest; one without columns where no key is a list.

    Raises ValueError for a list without anything in it, or with the same twice.
    """
    axes = {"model": named_models(tree["model"]), "ema": _averages(tree["ema"]), "num_steps": tree["num_steps"]}
    axes |= {"use_conditions": _sets(tree), **_settings({group: tree[group] for group in GROUPS}, "")}
    shared = isinstance(tree["num_steps"], list) and tree["num_steps"] == axes.get(
        "sigmas.num_steps"
    )  # where conf/sigmas takes them from the root
    if shared:
        del axes["sigmas.num_steps"]
    axes = {key: values for key, values in axes.items() if isinstance(values, list)}
    names = {
        key: _names(values) if key == "model" else [_column(value) for value in values] for key, values in axes.items()
    }
    for key, values in names.items():
        if not values:
            raise UserError(f"{key}=[]: a list of several to measure one after the other needs at least one")
        if len(set(map(str, values))) < len(values):
            raise UserError(f"{key}={axes[key]}: the same twice; each is one curve of the grid")
    for chosen in product(*(range(len(values)) for values in axes.values())):
        asked: dict[str, Any] = dict(tree)
        for (key, values), place in zip(axes.items(), chosen, strict=True):
            asked = _with(asked, key.split("."), values[place])
        asked = _with(asked, ["sigmas", "num_steps"], asked["num_steps"]) if shared else asked
        yield Cell({key: names[key][place] for key, place in zip(axes, chosen, strict=True)}, asked)


def _averages(ema: Any) -> Any:
    """The values of ema=, which is parsed here: to Hydra it is text, as ema is also the name of a config group."""
    if isinstance(ema, str) and ema.startswith("[") and ema.endswith("]"):
        return [name.strip() for name in ema[1:-1].split(",") if name.strip()]
    return ema


def _sets(tree: Mapping[str, Any]) -> Any:
    """The sets if there are several: use_conditions=[t5] is one set, use_conditions=[[t5],[clip_text]] are two."""
    use = tree["use_conditions"]
    return use if use and isinstance(use[0], list) else None


def _settings(node: Any, where: str) -> dict[str, list]:
    """Lists below a node of the tree where one value is asked for, by their keys."""
    found: dict[str, list] = {}
    for key, value in node.items() if isinstance(node, dict) else ():
        place = f"{where}.{key}" if where else key
        if isinstance(value, list) and place != CURVE:
            if not listed(node.get("_target_", CLASSES.get(where)), key, value):
                found[place] = value
        else:
            found |= _settings(value, place)
    return found


def with_classes(guidance: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of guidance that change a run's own, with the class of the part that some of them change."""
    if "_target_" in guidance or "limits" not in guidance:
        return dict(guidance)
    return {**guidance, "limits": {"_target_": CLASSES["guidance.limits"], **guidance["limits"]}}


def _with(node: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """A copy of a node with another value at a path."""
    first, *rest = path
    return {**node, first: _with(node[first], rest, value) if rest else value}


def _names(models: list[str]) -> list[str]:
    """A name for each of several models: its folder's or its file's; more of the path where two would be the same."""
    paths = [Path(model) for model in models]
    short = [path.stem if path.suffix in (".yaml", ".safetensors") else path.name for path in paths]
    return [
        "-".join(path.parts[-3:]) if short.count(name) > 1 else name for path, name in zip(paths, short, strict=True)
    ]


def _column(value: Any) -> str | int | float:
    return ("+".join(value) or "none") if isinstance(value, list) else value
