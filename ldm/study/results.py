"""The answers to a study as CSV and as a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.table
from rich.markup import escape

from ldm.evaluation.table import write_csv
from ldm.report.interval_dots import interval_dots
from ldm.report.page import Figure, Item, Section, Stat, Stats, Table, Text, write_report
from ldm.study.answers import Answer, answer_files, read_answers, read_key
from ldm.study.judged import Row, agreement, correlations, estimate, raters, shares, tasks_of
from ldm.study.pairs import TASKS

ASKED = {
    "real": "Accuracy: how often the real picture was told from the model's. 0.5 is chance, where the model's pictures "
    "pass for real; 1 is never mistaken.",
    "better": "How often a model's picture was preferred. 0.5 is chance.",
    "text": "How often a model's picture was said to follow the text better. 0.5 is chance.",
}


def import_study(tree: Mapping[str, Any]) -> tuple[list[Row], Path]:
    """Read the answers that `tree` (conf/study_import.yaml) names; the rows of all prompts, and the folder with files.

    ``results.csv`` has also those of groups and categories, ``correlations.csv`` the rank correlations. Raises
    UserError for a file that is not of this study, or damaged; nothing is written then.
    """
    folder = Path(tree["study"]).expanduser()
    key = read_key(folder)
    answers = read_answers(answer_files(tree["answers"]), key)
    out = Path(tree["out"]).expanduser() if tree["out"] else folder / "results"
    rows, correlated = shares(answers), correlations(answers)
    write_csv(out / "results.csv", rows)
    write_csv(out / "correlations.csv", correlated)
    people = raters(answers)
    sections = [
        Section("At a glance", "", [_glance(answers, key, people)]),
        *(_task(task, answers, rows, out) for task in tasks_of(answers)),
        Section("Scores and people", "", _correlations(correlated, key["metric"])),
        Section("Raters", "", [_raters(people)]),
    ]
    subtitle = f"Study {key['study']}: {len(answers)} answers of {len(people)} raters to {len(key['pairs'])} pairs."
    write_report(out, "What people said", subtitle, sections)
    return [row for row in rows if row["level"] == "all"], out


def table_of(rows: Sequence[Row]) -> rich.table.Table:
    """The rows that import_study returns, for a screen."""
    table = rich.table.Table(
        "task", *(rich.table.Column(name, overflow="fold") for name in ("model", "against")), "answers", ""
    )
    for row in rows:
        shown = f"{row['measure']} {estimate(row)}"
        table.add_row(row["task"], escape(row["model"]), escape(row["against"]), str(row["answers"]), shown)
    return table


def _glance(answers: Sequence[Answer], key: Mapping[str, Any], people: Sequence[Row]) -> Item:
    whole = sum(row["answers"] == len(key["pairs"]) for row in people)
    tiles = [Stat("Raters", str(len(people)), hint=f"{whole} answered all {len(key['pairs'])} pairs")]
    for task in tasks_of(answers):
        agreed, alpha = agreement([answer for answer in answers if answer.pair["task"] == task])
        if agreed == agreed:
            tiles.append(Stat(f"Agreement, {task}", f"{agreed:.2f}", hint=f"Krippendorff's alpha {alpha:.2f}"))
    return Stats(tiles)


def _task(task: str, answers: Sequence[Answer], rows: Sequence[Row], out: Path) -> Section:
    own = [row for row in rows if row["task"] == task]
    plotted = [row for row in own if row["against"] == "all" or not _has_all(own, row["model"])]
    dots: dict[str, dict[str, Any]] = {}
    for row in plotted:
        if row["level"] != "category" or row["answers"] > 1:
            dots.setdefault(row["model"], {})[_shown(row)] = estimate(row)
    plot = interval_dots(out / f"{task}.png", dots, label=own[0]["measure"], reference=0.5)
    table = Table(
        ["model", "against", "answers", own[0]["measure"], "95 %"],
        [
            [
                row["model"],
                row["against"],
                row["answers"],
                f"{row['value']:.3f}",
                f"{row['low']:.3f} to {row['high']:.3f}",
            ]
            for row in own
            if row["level"] == "all"
        ],
        "Over all prompts, with 95 % intervals (Wilson).",
        numeric=(2, 3, 4),
    )
    caption = "Points are shares of answers, lines their 95 % intervals (Wilson); the dashed line is chance."
    return Section(TASKS[task], ASKED[task], [Figure(plot, caption, "Shares by category with intervals."), table])


def _has_all(rows: Sequence[Row], model: str) -> bool:
    return any(row["model"] == model and row["against"] == "all" for row in rows)


def _shown(row: Row) -> str:
    return {"all": "all prompts", "group": f"{row['name']}, all"}.get(row["level"], row["name"])


def _correlations(rows: Sequence[Row], metric: str) -> list[Item]:
    text = (
        f"Spearman's rank correlation of choices with {metric}. Pairs: the share of answers for one picture, against "
        "how much higher it scores than the other. Categories, models: how often a model's pictures were chosen (taken "
        "for real), against their mean score. Three points at least."
    )
    shown = [
        [row["task"], row["level"], row["points"], *(_number(row[key]) for key in ("spearman", "p"))] for row in rows
    ]
    return [Text(text), Table(["question", "points are", "points", "Spearman", "p"], shown, numeric=(2, 3, 4))]


def _raters(rows: Sequence[Row]) -> Item:
    shown = [
        [row["rater"], row["answers"], str(row["accuracy"]), f"{row['left']:.2f}", _number(row["seconds"])]
        for row in rows
    ]
    caption = "Accuracy is that of the question which picture is real. A share of left answers far from 0.5, or times "
    return Table(
        ["rater", "answers", "accuracy", "left", "seconds, median"],
        shown,
        f"{caption}below half a second, say that somebody did not look.",
        numeric=range(1, 5),
    )


def _number(value: float | str | None) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "–"
