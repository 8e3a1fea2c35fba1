"""Scores of pictures as rows: of each, and of categories, groups and all, with intervals over prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Column, Table

from ldm.study.intervals import Estimate, bootstrap_mean
from ldm.study.names import file_name
from ldm.study.prompt_set import REAL, Prompt, categories

Row = dict[str, Any]
Scores = Mapping[str, list[list[float]]]  # model -> [prompts][pictures]


def single(prompts: Sequence[Prompt], found: Scores, metric: str) -> list[Row]:
    """A row for each picture."""
    return [
        {
            "model": name, "prompt": prompts[place].prompt, "category": prompts[place].category,
            "group": prompts[place].group, "file": f"images/{name}/{file_name(place, number)}", metric: value,
        }
        for name, table in found.items()
        for place, values in enumerate(table)
        for number, value in enumerate(values)
    ]  # fmt: skip


def parts(prompts: Sequence[Prompt]) -> dict[tuple[str, str], list[int]]:
    """(level, name) -> places of its prompts: all, then each group before its categories."""
    own = categories(prompts)
    found = {("all", "all"): list(range(len(prompts)))}
    for group in dict.fromkeys(own.values()):
        found["group", group] = [n for n, prompt in enumerate(prompts) if prompt.group == group]
        for category in (name for name, of in own.items() if of == group):
            found["category", category] = [n for n, prompt in enumerate(prompts) if prompt.category == category]
    return found


def grouped(prompts: Sequence[Prompt], found: Scores, metric: str) -> list[Row]:
    """A row for each part and model: the mean over its prompts with a 95 % interval, by bootstrap over prompts.

    Several pictures of a prompt count as their mean. `difference` is to the first model, prompt by prompt.
    """
    means = {name: np.array([np.mean(values) for values in table]) for name, table in found.items()}
    first = next(name for name in found if name != REAL)
    rows = []
    for (level, part), places in parts(prompts).items():
        for name, values in means.items():
            mean, low, high = bootstrap_mean(values[places])
            row: Row = {"level": level, "name": part, "model": name, "prompts": len(places)}
            row |= {metric: mean, "low": low, "high": high}
            other = bootstrap_mean((values - means[first])[places]) if name != first else ("", "", "")
            rows.append({**row, **dict(zip(("difference", "difference_low", "difference_high"), other, strict=True))})
    return rows


def table_of(rows: Sequence[Row]) -> Table:
    """The rows of `grouped` with a column for each model, for a screen; what is too wide takes two lines."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    table = Table("", "prompts", *[Column(escape(model), overflow="fold") for model in models])
    for start in range(0, len(rows), len(models)):
        own = rows[start : start + len(models)]
        metric = next(name for name in own[0] if "/" in name)
        shown = [str(Estimate(row[metric], row["low"], row["high"])) for row in own]
        table.add_row(escape(own[0]["name"]), str(own[0]["prompts"]), *shown, end_section=own[0]["level"] == "all")
    return table
