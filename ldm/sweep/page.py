"""What a sweep over f has found: figures 6 and 7 (arXiv 2112.10752), a table with intervals over seeds, a page, W&B."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.evaluation.evaluate import curve_keys
from ldm.evaluation.table import write_csv
from ldm.report.error_bars import error_bars
from ldm.report.page import Figure, Section, Table, Text, write_report
from ldm.report.plots import loss_curves, quality_over_speed
from ldm.results.results import CellResults
from ldm.sweep.cells import Cell
from ldm.sweep.intervals import ends_are_worse, interval
from ldm.training.loggers import log_summary

Row = dict[str, Any]
SECONDS = ("first_stage_device_seconds", "encode_device_seconds", "device_seconds", "measure_device_seconds")
PLAIN = ("channels", "parameters", "first_stage_parameters", "steps", "memory_gib", *SECONDS[:1], SECONDS[2])
SHOWN = ("channels", "parameters", "first_stage_parameters", "steps", "rfid/", "rfd/", "psnr", "fid/", "fd/", "kid/",
         "is/", "samples_per_second", "memory_gib", "device_hours")  # fmt: skip
WITH_INTERVALS = (
    "psnr",
    "ssim",
    "rfid/",
    "rfd/",
    "fid/",
    "fd/",
    "kid/",
    "is/",
    "precision/",
    "recall/",
    "samples_per_second",
)


def write_page(tree: dict[str, Any], folder: Path, asked: list[Cell], results: CellResults) -> Path:
    """Figures, ``table.csv`` and index.html of the `asked` cells that are finished; returns the page."""
    rows = [row for cell in asked for row in results.cells.find(cell)]
    _check_rows(rows, results.cells.path)
    seconds = {_key(row): row["device_seconds"] / row["steps"] for row in rows}
    points = [
        {**point, "device_seconds": point["step"] * seconds[_key(point)]}
        for point in results.points.rows
        if _key(point) in seconds
    ]
    folder.mkdir(parents=True, exist_ok=True)
    table = summary(rows)
    write_csv(folder / "table.csv", table)
    kid = curve_keys(rows[0])[0]
    backbone = kid.partition("/")[2]
    pictures = _draw(folder, tree["budget"], table, points, kid, f"is/{backbone}")
    said = [verdict(rows, kid, name, asked) for name in dict.fromkeys(cell.regularizer for cell in asked if cell.f > 1)]
    texts = [Text(f"Hypothesis, written before the first run: {tree['hypothesis']}")] if tree["hypothesis"] else []
    shown = [key for key in SHOWN if any(line.get(name) is not None for line in table for name in _named(line, key))]
    cells = [[line["model"], *(_cell(line, key) for key in shown)] for line in table]
    headers = ["model", *(next(name for line in table for name in _named(line, key)) for key in shown)]
    intro = (
        f"{len(rows)} of {len(asked)} cells. Means over seeds, ± half a 95 % interval by Student's t where there are "
        f"several; numbers with {backbone} in their names are FID and IS in the literature's sense only for "
        "inception_v3. Device-seconds are of CPU cores or of GPUs; device-hours are those of a whole cell."
    )
    captions = {
        "quality_over_f": "Quality over f, with the 95 % intervals over seeds.",
        "quality_over_steps": "Figure 6: quality over training, means over seeds.",
        "inception_score_over_steps": "Figure 6: Inception score over training.",
        "quality_over_speed": "Figure 7: quality over samples per device-second, by DDIM steps.",
    }
    figures = [Figure(path, captions[name], captions[name]) for name, path in pictures.items()]
    sections = [
        Section("What came", "", [*texts, *(Text(text) for text in said if text)]),
        Section("Every f", intro, [Table(headers, cells, numeric=range(1, len(headers)))]),
        Section("Trade-offs", "", figures),
    ]
    page = write_report(folder, "The factor f", f"{tree['family']}: {len(rows)} cells.", sections)
    best = {f"best/{model}": min(values) for model, values in _by_model(rows, kid).items()}
    logger, every = tree["logger"], {"cells": _level(rows), "points": _level(points), "table": _level(table)}
    log_summary(folder, folder.name, logger["project"], logger["mode"], best, every, pictures)
    return page


def _check_rows(rows: list[Row], path: Path) -> None:
    """Raises UserError for a row without what the page is of."""
    for row in rows:
        name = Cell(row["f"], row["regularizer"], row["seed"]).name
        if row.get("device_seconds") is None or not any(key.startswith(("kid/", "fid/", "fd/")) for key in row):
            raise UserError(f"{path}: its row {name} lacks device_seconds or kid/; delete the row")


def _named(line: Row, key: str) -> list[str]:
    """The columns of `key`, which may be the beginning of a metric's name."""
    return [name for name in line if (name.startswith(key) if key.endswith("/") else name == key)]


def _cell(line: Row, key: str) -> str:
    """A value and, where seeds give one, half its interval."""
    name = next((name for name in _named(line, key) if not name.endswith("±")), None)
    half = line.get(f"{name} ±")
    return _text(line.get(name)) + (f" ± {half:.2g}" if half is not None else "")


def summary(rows: list[Row]) -> list[Row]:
    """A row for each model: means over its seeds, and in a column of its own half the interval, empty for one seed."""
    found = []
    for name in _by_model(rows, "steps"):
        own = [row for row in rows if _model(row) == name]
        line: Row = {"model": name, "f": own[0]["f"], "seeds": len(own)}
        line |= {key: _mean(own, key) for key in PLAIN}
        line["device_hours"] = sum(_mean(own, key) or 0 for key in SECONDS) / 3600
        for key in dict.fromkeys(key for row in rows for key in row):
            if key.startswith(WITH_INTERVALS):
                values = [row[key] for row in own if row.get(key) is not None]
                mean, half = interval(values) if values else (None, math.inf)
                line |= {key: mean, f"{key} ±": half if math.isfinite(half) else None}
        found.append(line)
    return sorted(found, key=lambda line: (line["model"].partition("-")[0] if line["f"] > 1 else "", line["f"]))


def verdict(rows: list[Row], kid: str, regularizer: str, asked: Sequence[Cell] = ()) -> str | None:
    """Whether the best f lies between the ends, and these are worse with disjoint intervals; None below three f.

    Not before all cells that were `asked` for have a row with that value.
    """
    own = [row for row in rows if row["regularizer"] in ("", regularizer) and row.get(kid) is not None]
    there = {_key(row) for row in own}
    wanted = [cell for cell in asked if cell.regularizer in ("", regularizer)]
    missing = [cell.name for cell in wanted if (cell.regularizer, cell.f, cell.seed) not in there]
    if missing and len({cell.f for cell in wanted}) > 2:
        return f"{regularizer.upper()}: not yet judged: these cells are missing: {', '.join(missing)}."
    values = {f: [row[kid] for row in own if row["f"] == f] for f in sorted({row["f"] for row in own})}
    if len(values) < 3:
        return None
    found = ends_are_worse(values)
    best = f"{regularizer.upper()}: the best f is {found.best}"
    means = ", ".join(f"f = {f}: {_text(interval(own)[0])}" for f, own in values.items())
    if min(map(len, values.values())) < 2:
        return f"{best}; one seed has no interval, so the hypothesis is not judged. Mean {kid}: {means}."
    words = {True: "worse, with disjoint intervals", False: "not worse with disjoint intervals"}
    ends = ", ".join(f"f = {f} is {words[worse]}" for f, worse in found.worse.items())
    return (
        f"{best}; {ends}. The hypothesis that both ends are worse {'holds' if found.holds else 'does not hold'} here. "
        f"Mean {kid}: {means}."
    )


def _draw(folder: Path, budget: str, table: list[Row], points: list[Row], kid: str, score: str) -> dict[str, Path]:
    steps = [point for point in points if point["curve"] == "steps"]
    speed = [point for point in points if point["curve"] == "speed"]
    across = "step" if budget == "steps" else "device_seconds"
    pictures = {}
    for name, key in (("quality_over_steps", kid), ("inception_score_over_steps", score)):
        curves = {model: _moments(steps, model, across, key) for model in _by_model(steps, key)}
        path = folder / f"{name}.png"
        pictures[name] = loss_curves(path, curves, smoothing=0.0, x_label=across.replace("_", "-"), y_label=key)
    bars: dict[str, list[tuple[float, float, float]]] = {}
    kinds = dict.fromkeys(line["model"].partition("-")[0] for line in table if line["f"] > 1) or ["pixels"]
    for kind in kinds:  # each begins at f = 1, which all share
        own = [line for line in table if line["f"] == 1 or line["model"].startswith(f"{kind}-")]
        bars[kind] = [(line["f"], line[kid], line[f"{kid} ±"] or 0.0) for line in own]
    pictures["quality_over_f"] = error_bars(folder / "quality_over_f.png", bars, x_label="f", y_label=kid)
    over = {}
    for model in _by_model(speed, kid):
        counts, values = _curve(speed, model, "num_steps", kid)
        rates = _curve(speed, model, "num_steps", "samples_per_second")[1]
        over[model] = [(rate, value, str(count)) for rate, value, count in zip(rates, values, counts, strict=True)]
    if over:
        name = "quality_over_speed"
        pictures[name] = quality_over_speed(folder / f"{name}.png", over, quality_label=kid)
    return pictures


def _moments(points: list[Row], model: str, across: str, key: str) -> tuple[list[float], list[float]]:
    """Means over the seeds of a model at each step, over the mean of what lies `across`."""
    return _curve(points, model, "step", across)[1], _curve(points, model, "step", key)[1]


def _curve(points: list[Row], model: str, across: str, key: str) -> tuple[list[float], list[float]]:
    """Means over the seeds of a model, by what lies across."""
    own = [point for point in points if _model(point) == model]
    places = sorted({point[across] for point in own})
    return places, [_mean([point for point in own if point[across] == place], key) for place in places]


def _by_model(rows: list[Row], key: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for row in sorted(rows, key=lambda row: (row["regularizer"], row["f"])):
        found.setdefault(_model(row), []).append(row.get(key))
    return found


def _mean(rows: list[Row], key: str) -> Any:
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values:
        return None
    return values[0] if len(set(values)) == 1 else math.fsum(values) / len(values)


def _level(rows: list[Row]) -> list[Row]:
    """Rows under the same names, numbers alone, for W&B."""
    names = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ("settings", "curve")]
    return [{name: row.get(name) for name in names} for row in rows]


def _model(row: Row) -> str:
    return Cell(row["f"], row["regularizer"], row.get("seed", 0)).model


def _key(row: Row) -> tuple[str, int, int]:
    return row["regularizer"], row["f"], row["seed"]


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
