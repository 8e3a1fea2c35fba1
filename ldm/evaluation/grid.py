"""The grid of an evaluation: lists of averages of the weights, of numbers of steps and of sets of conditions.

Each of its cells is a curve over the scales of guidance, measured and kept as if it had been asked for alone.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

from ldm.errors import UserError


class Cell(NamedTuple):
    """One curve of a grid: its `columns` {key: value} of a table, and the `tree` that asks for it alone."""

    columns: dict[str, str | int]
    tree: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of its folder; empty where no key is a list."""
        return "-".join(f"{key}_{value}" for key, value in self.columns.items())


def cells(tree: Mapping[str, Any]) -> Iterator[Cell]:
    """Those of `tree` (conf/evaluate.yaml), the last key the fastest; one without columns where no key is a list.

    Raises ValueError for a list without anything in it.
    """
    axes = {"ema": _averages(tree["ema"]), "num_steps": tree["num_steps"], "use_conditions": _sets(tree)}
    axes = {key: values for key, values in axes.items() if isinstance(values, list)}
    for key, values in axes.items():
        if not values:
            raise UserError(f"{key}=[]: a list of several to measure one after the other needs at least one")
    for chosen in product(*axes.values()):
        values = dict(zip(axes, chosen, strict=True))
        yield Cell({key: _column(value) for key, value in values.items()}, {**tree, **values})


def _averages(ema: Any) -> Any:
    """The values of ema=, which is parsed here: to Hydra it is text, as ema is also the name of a config group."""
    if isinstance(ema, str) and ema.startswith("[") and ema.endswith("]"):
        return [name.strip() for name in ema[1:-1].split(",") if name.strip()]
    return ema


def _sets(tree: Mapping[str, Any]) -> Any:
    """The sets if there are several: use_conditions=[t5] is one set, use_conditions=[[t5],[clip_text]] are two."""
    use = tree["use_conditions"]
    return use if use and isinstance(use[0], list) else None


def _column(value: Any) -> str | int:
    return ("+".join(value) or "none") if isinstance(value, list) else value
