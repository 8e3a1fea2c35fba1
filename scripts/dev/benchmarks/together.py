"""Several suites one after the other, each a process of its own: one table, one JSON file, one plot.

What is in the JSON file already, found with the same options, is not measured again.
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import torch

from benchmarks.findings import Curve, Row, read
from benchmarks.measure import SCRIPT
from ldm.errors import UserError

OPTIONS = ("repeats", "batch_size", "image_size", "precision", "compile")


def run(suites: list[str], options: dict) -> int:
    """Measure what is missing and print the table; 1 if a suite failed. Raises UserError for another file's options."""
    out = Path(options["out"] or "benchmarks")
    out.mkdir(parents=True, exist_ok=True)
    path, asked = out / "benchmarks.json", {key: options[key] for key in OPTIONS}
    found = json.loads(path.read_text()) if path.exists() else {"options": asked, "suites": {}}
    if found["options"] != asked:
        raise UserError(f"out={out}: was measured with other options ({found['options']}); choose another folder")
    failed = []
    for suite in suites:
        if suite in found["suites"]:
            continue
        print(f"-- {suite}", flush=True)
        own = _measured(suite, asked)
        if own is None:
            failed.append(suite)
            continue
        found["suites"][suite] = own
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(found, indent=1) + "\n")
        partial.replace(path)
    rows = {suite: read(own) for suite, own in found["suites"].items() if suite in suites}
    _show({suite: own[0] for suite, own in rows.items()})
    _draw(out, [row for own, _ in rows.values() for row in own], [curve for _, own in rows.values() for curve in own])
    for suite in failed:
        print(f"{suite}: failed, what it said stands above; the same command tries it again")
    print(f"also in {out}/")
    return int(bool(failed))


def _measured(suite: str, asked: dict) -> dict | None:
    """What a suite found, in a process of its own; None if it failed."""
    words = [f"{key}={str(value).lower()}" for key, value in asked.items()]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "findings.json"
        command = [sys.executable, str(SCRIPT), f"suite={suite}", *words, f"findings={path}"]
        if subprocess.run(command).returncode or not path.exists():
            return None
        found = json.loads(path.read_text())
    where = {"torch": torch.__version__, "python": platform.python_version(), "processor": _processor()}
    return {"seconds": round(time.monotonic() - began, 1), **where, **found}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _show(rows: dict[str, list[Row]]) -> None:
    """The table: quantity, figure, goal, met or missed by how much of the goal."""
    print(f"\n{'suite':<18} {'quantity':<58} {'figure':>12} {'spread':>7} {'goal':>14}")
    for suite, own in rows.items():
        for row in own:
            unit = "x" if row.unit == "x" else f" {row.unit}"
            spread = "-" if row.spread is None else f"{100 * row.spread:.0f} %"
            verdict = "met" if row.met else f"missed by {100 * row.missed_by:.0f} %"
            figure = f"{row.figure:.3g}{unit}"
            print(f"{suite:<18} {row.quantity:<58} {figure:>12} {spread:>7} {row.goal_text:>14}   {verdict}")
    every = [row for own in rows.values() for row in own]
    print(f"{sum(row.met for row in every)} of {len(every)} goals met")


def _draw(out: Path, rows: list[Row], curves: list[Curve]) -> None:
    """benchmarks.png: how far each figure is beyond its goal; growth.png: a panel for each curve."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    if rows:
        figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.28 * len(rows)), layout="constrained")
        ahead = [row.goal / max(row.figure, 1e-9) if row.at_most else row.figure / row.goal for row in rows]
        colours = ["tab:blue" if row.met else "tab:orange" for row in rows]
        axes.barh([row.quantity for row in rows], [max(value, 1e-3) - 1 for value in ahead], left=1, color=colours)
        axes.axvline(1, color="black", linewidth=1)
        axes.set(xscale="log", xlabel="times the goal (right of the line: met)")
        axes.invert_yaxis()
        figure.savefig(out / "benchmarks.png", dpi=110, metadata={"Software": None})
        pyplot.close(figure)
    if curves:
        columns = min(3, len(curves))
        height = -(-len(curves) // columns)
        figure, grid = pyplot.subplots(
            height, columns, figsize=(3.4 * columns, 2.8 * height), layout="constrained", squeeze=False
        )
        for axes in grid.flat[len(curves) :]:
            axes.set_visible(False)
        for axes, curve in zip(grid.flat, curves, strict=False):
            for name, (x, y) in curve.lines.items():
                axes.plot(x, y, marker="o", markersize=3, label=name)
            axes.set_title(curve.title, fontsize=10)
            top = 1.1 * max(max(y) for _, y in curve.lines.values())
            axes.set(xlabel=curve.x_label, ylabel=curve.y_label, ylim=(0, top))
            if max(max(x) for x, _ in curve.lines.values()) > 1000:
                axes.set_xscale("log")
            axes.legend(fontsize=7)
            axes.grid(alpha=0.3)
        figure.savefig(out / "growth.png", dpi=110, metadata={"Software": None})
        pyplot.close(figure)
