"""The page of the tasks: all numbers with their intervals, over seeds where there are several, and contact sheets."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.report.page import Cell, ImageGrid, Item, Section, Table, Text, write_report
from ldm.results.results import Results
from ldm.sweep.intervals import interval
from ldm.tasks.judging import caption_of
from ldm.tasks.results import sheet_of
from ldm.tasks.trainings import Part

Row = dict[str, Any]
WIDE = 900  # px of a sheet on the page


def write_page(folder: Path, asked: Sequence[Part], results: Results, seeds: Sequence[int]) -> Path:
    """index.html of the `asked` parts that are judged; returns its path."""
    tasks = list(dict.fromkeys(part.task for part in asked))
    sections = [_section(task, [part for part in asked if part.task == task], results) for task in tasks]
    return write_report(folder, "The tasks", f"{results.count(asked)} of {len(asked)} tasks judged.", sections)


def _section(task: str, own: Sequence[Part], results: Results) -> Section:
    found = {part: rows for part in own if (rows := results.find(part))}
    if not found:
        return Section(task.replace("_", " "), "Not judged yet.")
    quantities = dict.fromkeys(row["quantity"] for rows in found.values() for row in rows)
    headers = ["quantity", *[f"seed {part.seed}" for part in found], *(["all seeds"] if len(found) > 1 else [])]
    lines = [_line(quantity, list(found.values())) for quantity in quantities]
    items: list[Item] = [Table(headers, lines, numeric=range(1, len(headers)))]
    for part in found:
        sheet = sheet_of(results, part)
        if sheet.exists():
            label = f"seed {part.seed}: {caption_of(sheet)}"
            items.append(ImageGrid([[Cell((sheet,), label)]], size=WIDE))
        else:
            items.append(Text(f"{sheet}: the contact sheet is not beside the rows."))
    intro = "In brackets 95 % intervals by the bootstrap over samples; over all seeds Student's t, ± half of it."
    return Section(task.replace("_", " "), intro, items)


def _line(quantity: str, seeds: Sequence[Sequence[Row]]) -> list[str]:
    """A line of the table: the value of each seed with its interval, then their mean."""
    own = [next((row for row in rows if row["quantity"] == quantity), None) for rows in seeds]
    cells = ["" if row is None else f"{row['value']:.4g} [{row['low']:.3g}, {row['high']:.3g}]" for row in own]
    values = [row["value"] for row in own if row is not None]
    if len(seeds) > 1:
        mean, half = interval(values)
        cells.append(f"{mean:.4g}" + (f" ± {half:.2g}" if math.isfinite(half) else ""))
    return [quantity, *cells]
