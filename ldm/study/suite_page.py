"""The page of a set of prompts: means with intervals by category as a plot and a table, then every picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ldm.report.interval_dots import interval_dots
from ldm.report.page import Cell, Figure, ImageGrid, Item, Section, Table, write_report
from ldm.study.grouped import Row, parts
from ldm.study.intervals import Estimate
from ldm.study.names import file_name
from ldm.study.prompt_set import Prompt, categories


def write_page(
    folder: Path, prompts: Sequence[Prompt], found: Mapping[str, list[list[float]]], rows: Sequence[Row], metric: str
) -> Path:
    """Write folder/index.html and folder/scores.png; returns the page."""
    values = {(row["level"], row["name"], row["model"]): _estimate(row, metric) for row in rows}
    names = list(parts(prompts))
    dots = {model: {_shown(level, name): values[level, name, model] for level, name in names} for model in found}
    plot = interval_dots(folder / "scores.png", dots, label=f"{metric} (right is better)")
    table = Table(
        ["", "prompts", *found],
        [
            [_shown(level, name), len(parts(prompts)[level, name]), *(str(values[level, name, m]) for m in found)]
            for level, name in names
        ],
        f"Mean {metric} and its 95 % interval, by bootstrap over prompts.",
        numeric=range(1, 2 + len(found)),
    )  # fmt: skip
    caption = "Each point is a mean over prompts, its line a 95 % interval by bootstrap over them."
    scores = Section("Scores", metric, [Figure(plot, caption, "Means by category with intervals."), table])
    own = categories(prompts)
    pictures = [
        Section(group, "", [_grid(folder, prompts, found, name) for name, of in own.items() if of == group])
        for group in dict.fromkeys(own.values())
    ]
    many = f"{len(prompts)} prompts in {len(own)} categories and {len(set(own.values()))} groups"
    return write_report(folder, "Prompts by category", f"{many}. Every picture is shown.", [scores, *pictures])


def _grid(folder: Path, prompts: Sequence[Prompt], found: Mapping[str, list[list[float]]], category: str) -> Item:
    rows = []
    for place in (n for n, prompt in enumerate(prompts) if prompt.category == category):
        cells = [
            Cell(
                [folder / "images" / model / file_name(place, number) for number in range(len(table[place]))],
                sublabel=f"{sum(table[place]) / len(table[place]):.3f}",
            )
            for model, table in found.items()
        ]
        rows.append([Cell(label=prompts[place].prompt), *cells])
    return ImageGrid(rows, ["", *found], f"{category}, with the mean score of each prompt's pictures", size=96)


def _estimate(row: Row, metric: str) -> Estimate:
    return Estimate(row[metric], row["low"], row["high"])


def _shown(level: str, name: str) -> str:
    return name if level == "category" else "all prompts" if level == "all" else f"{name}, all"
