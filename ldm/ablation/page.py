"""What an ablation has found: a table with intervals, KID over the time of the trainings, and the verdict; a page."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.ablation.cells import Cell
from ldm.ablation.plan import Plan
from ldm.evaluation.evaluate import curve_keys
from ldm.evaluation.table import ends, write_csv
from ldm.report.interval_dots import Interval, interval_dots
from ldm.report.page import Figure, Section, Table, Text, write_report
from ldm.report.plots import loss_curves
from ldm.results.results import CellResults
from ldm.sweep.intervals import interval
from ldm.training.loggers import log_summary

Row = dict[str, Any]
BESIDE = ("fd/", "fid/", "precision/", "recall/", "alignment_score/", "clip_score/")
SHOWN = ("parameters", "batch_size", "steps", "device_seconds")


def write_page(tree: dict[str, Any], plan: Plan, folder: Path, asked: Sequence[Cell], results: CellResults) -> Path:
    """Figures, ``table.csv`` and index.html of the `asked` cells that are finished; returns the page."""
    rows = [row for cell in asked for row in results.cells.find(cell)]
    kid = curve_keys(rows[0])[0]
    folder.mkdir(parents=True, exist_ok=True)
    table = summary(rows, plan, kid)
    write_csv(folder / "table.csv", table)
    pictures = _draw(folder, plan, table, rows, results.points.rows, kid)
    shown = [key for key in (*SHOWN, kid, f"{kid} low", f"{kid} high", "of the control") if key in table[0]]
    beside = [key for key in table[0] if key.startswith(BESIDE)]
    headers = ["row", "seeds", *shown, *beside, "what it is"]
    cells = [
        [line["row"], line["seeds"], *(_text(line.get(key)) for key in (*shown, *beside)), plan.says(line["row"])]
        for line in table
    ]
    intro = (
        f"{len(rows)} of {len(asked)} cells, {tree['device_seconds']:g} device-seconds each. Means over seeds; low and "
        "high are the ends of the 95 % interval, over the seeds by Student's t where there are several, else over the "
        "samples by the bootstrap. Numbers bear their backbone's name."
    )
    captions = {
        "kid": f"{kid} of each row with its interval; the line is {plan.target:g} of the control's, {plan.control}.",
        "kid_over_time": f"{kid} over the device-seconds of the training, means over seeds.",
    }
    figures = [Figure(path, captions[name], captions[name]) for name, path in pictures.items()]
    said = [Text(f"Written before the first run: {plan.hypothesis}"), Text(verdict(table, plan, kid))]
    sections = [
        Section("What came", "", said),
        Section("Every row", intro, [Table(headers, cells, numeric=range(1, len(headers) - 1))]),
        Section("Figures", "", figures),
    ]
    page = write_report(folder, f"Ablation {plan.name}", f"{len(rows)} cells.", sections)
    best = {f"{kid}/{line['row']}": line[kid] for line in table}
    names = [key for key in dict.fromkeys(key for line in table for key in line) if key != "row"]
    level = {"table": [{name: line.get(name) for name in names} for line in table]}
    log_summary(folder, folder.name, tree["logger"]["project"], tree["logger"]["mode"], best, level, pictures)
    return page


def summary(rows: list[Row], plan: Plan, kid: str) -> list[Row]:
    """A line for each row, in the plan's order: means over its seeds, and the ends of the interval of its KID."""
    found: list[Row] = []
    for name in plan.names:
        own = [row for row in rows if row["row"] == name]
        if own:
            line: Row = {"row": name, "seeds": len(own)}
            keys = [key for key in own[0] if key in SHOWN or key == kid or key.startswith(BESIDE)]
            line |= {key: math.fsum(row[key] for row in own) / len(own) for key in keys if own[0][key] is not None}
            low, high = _ends(own, kid)
            found.append(line | {f"{kid} low": low, f"{kid} high": high})
    control = next((line[kid] for line in found if line["row"] == plan.control), None)
    return [{**line, "of the control": line[kid] / control if control and control > 0 else None} for line in found]


def _ends(own: list[Row], kid: str) -> tuple[float, float]:
    if len(own) > 1:
        mean, half = interval([row[kid] for row in own])
        return mean - half, mean + half
    low, high = (own[0].get(end) for end in ends(kid))
    return (math.nan, math.nan) if low is None or high is None else (low, high)


def verdict(table: list[Row], plan: Plan, kid: str) -> str:
    """Whether the best row of ours reaches `target` of the control's KID, and with intervals that do not meet."""
    peers = {peer.name for peer in plan.peers}
    control = next((line for line in table if line["row"] == plan.control), None)
    ours = [line for line in table if line["row"] not in peers and line["row"] != plan.control]
    if control is None or not ours:
        return f"Not judged: {plan.control} is {'alone' if control else 'not measured yet'}."
    if control[kid] <= 0:  # as an unbiased estimate may be: nothing is a share of it
        return f"Not judged: {kid} of {plan.control} is {control[kid]:.4g}, not above 0; take more num_samples=."
    best = min(ours, key=lambda line: line[kid])
    share = best[kid] / control[kid]
    apart = best[f"{kid} high"] < control[f"{kid} low"]
    met = "met" if share <= plan.target else "missed"
    seeds = f"{best['seeds']} and {control['seeds']} seeds"
    return (
        f"Lowest {kid}: {best['row']}, {best[kid]:.4g} against {control[kid]:.4g} of {plan.control}, {share:.2f} of it "
        f"({seeds}; their intervals {'do not meet' if apart else 'meet'}). The target of {plan.target:g} is {met}."
    )


def _draw(folder: Path, plan: Plan, table: list[Row], rows: list[Row], points: list[Row], kid: str) -> dict[str, Path]:
    control = next((line[kid] for line in table if line["row"] == plan.control), None)
    dots: dict[str, Interval] = {line["row"]: (line[kid], line[f"{kid} low"], line[f"{kid} high"]) for line in table}
    target, label = None if control is None else plan.target * control, f"{kid} (left is better)"
    pictures = {"kid": interval_dots(folder / "kid.png", {kid: dots}, label=label, reference=target)}
    curves = {}
    for name in dots:
        seeds = {row["seed"] for row in rows if row["row"] == name}
        own = [point for point in points if point["row"] == name and point["seed"] in seeds]
        each = [sorted((p for p in own if p["seed"] == seed), key=lambda p: p["steps"]) for seed in sorted(seeds)]
        moments = list(zip(*each, strict=False))
        curves[name] = (
            [math.fsum(p["device_seconds"] for p in moment) / len(moment) for moment in moments],
            [math.fsum(p[kid] for p in moment) / len(moment) for moment in moments],
        )
    path = folder / "kid_over_time.png"
    pictures["kid_over_time"] = loss_curves(path, curves, smoothing=0.0, x_label="device-seconds", y_label=kid)
    return pictures


def _text(value: float | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) and not value.is_integer() else str(round(value))
