"""The page of the experts: what was expected, what came, and the figures and tables it is read from."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.evaluation.table import write_csv
from ldm.report.page import Figure, Item, Section, Table, Text, write_report
from ldm.report.plots import interval_bars, loss_curves, trade_off
from ldm.results.results import Results
from ldm.trees.findings import UP, Difference, difference, mean, sampled, seeds_of, verdict
from ldm.trees.judge import ENSEMBLE, NEEDED
from ldm.trees.results import Part
from ldm.trees.schedule import Schedule

Row = dict[str, Any]
FIGURES = ("trade_off", "inside", "loss_over_noise")  # in the folder of a schedule


def write_page(folder: Path, schedules: Sequence[Schedule], results: Results, seeds: Sequence[int]) -> Path:
    """index.html of the judged trees, with a folder of figures and ``differences.csv`` for each; returns its path."""
    sections = []
    for schedule in schedules:
        rows = [row for seed in seeds for row in results.find(Part(schedule.name, seed))]
        own = folder / schedule.name
        own.mkdir(parents=True, exist_ok=True)
        sections += _sections(own, schedule, rows, seeds) if rows else [Section(schedule.name, "Not judged yet.")]
    return write_report(folder, "Experts against training on", "At equal samples of training.", sections)


def _sections(folder: Path, schedule: Schedule, rows: list[Row], seeds: Sequence[int]) -> list[Section]:
    said = verdict(rows, seeds)
    texts: list[Item] = [Text(f"Expected, written before the first run: {schedule.hypothesis}")]
    texts += [Text(text) for text in said]
    print("\n".join(f"{schedule.name}: {text}" for text in said), flush=True)
    quantities, scales = sampled(rows), sorted({row["scale"] for row in rows if row.get("scale") is not None})
    systems = [name for name in schedule.ensembles if mean(rows, name, quantities[0]) is not None]
    intro = (
        f"{len(seeds_of(rows))} training seeds; ± is half a 95 % interval over them by Student's t, of means over "
        "sampling seeds. Differences are paired by training seed; a distance and a loss are better below 0."
    )
    return [
        Section(f"{schedule.name}: what came", "", texts),
        Section(f"{schedule.name}: samples", intro, [
            *_trade_off(folder, rows, systems, quantities, scales),
            _differences(folder, rows, systems, quantities, scales, schedule),
        ]),
        Section(f"{schedule.name}: held-out loss", intro, _losses(folder, rows, schedule)),
        Section(f"{schedule.name}: each expert replaced by what it came from", "", [_pairings(rows, quantities)]),
        Section(f"{schedule.name}: the systems", "", [_systems(folder, rows, schedule, quantities, scales)]),
    ]  # fmt: skip


def _trade_off(
    folder: Path, rows: list[Row], systems: list[str], quantities: list[str], scales: list[float]
) -> list[Item]:
    """Figure 7: quality against alignment over guidance, means over all seeds."""
    up = next((name for name in quantities if name.startswith(UP)), None)
    if up is None:
        return []
    curves, bars = {}, {}
    for name in systems:
        points = [(scale, mean(rows, name, quantities[0], scale), mean(rows, name, up, scale)) for scale in scales]
        curves[name] = [(scale, one.mean, other.mean) for scale, one, other in points]
        bars[name] = [(*_ends(one), *_ends(other)) for _, one, other in points]
    finite = all(math.isfinite(end) for own in bars.values() for bar in own for end in bar)
    path = trade_off(
        folder / "trade_off.png", curves, quality_label=quantities[0], alignment_label=up, bars=bars if finite else None
    )
    return [Figure(path, "Numbers are guidance scales.", "Figure 7: quality against alignment over guidance")]


def _ends(found: Difference) -> tuple[float, float]:
    return found.mean - found.half, found.mean + found.half


def _differences(
    folder: Path, rows: list[Row], systems: list[str], quantities: list[str], scales: list[float], schedule: Schedule
) -> Table:
    """Every system less the control, at each scale and over all; the same as differences.csv."""
    lines: list[list[str]] = []
    table: list[Row] = []
    for name in systems:
        if name == "control":
            continue
        for scale in [None, *scales]:
            cells = []
            for quantity in quantities:
                found = difference(rows, name, "control", quantity, scale)
                cells.append(str(found))
                table.append({"system": name, "against": "control", "scale": scale, "quantity": quantity,
                              "difference": found.mean, "half_interval": found.half, "seeds": found.seeds})  # fmt: skip
            steps = schedule.total(schedule.ensembles[name])
            lines.append([f"{name} ({steps:,} steps)", "all" if scale is None else f"{scale:g}", *cells])
    write_csv(folder / "differences.csv", table)
    steps = schedule.total(schedule.ensembles["control"])
    caption = f"Less the control, which is of {steps:,} steps in all; compare systems of as many with it."
    return Table(["system", "guidance", *quantities], lines, caption, numeric=range(2, 2 + len(quantities)))


def _losses(folder: Path, rows: list[Row], schedule: Schedule) -> list[Item]:
    """Child against parent and control inside each interval, with a warning where a child loses; losses over bins."""
    lines, bars, warned = [], {}, []
    for name in schedule.ensembles[ENSEMBLE]:
        quantity = f"loss inside {name}"
        own = mean(rows, "child", quantity)
        if own is None:
            continue
        cells = [f"{own.mean:.4g}"]
        for against in ("parent", "control"):
            found, other = difference(rows, "child", against, quantity), mean(rows, against, quantity)
            cells += [f"{other.mean:.4g}", str(found)]
            half = found.half if math.isfinite(found.half) else 0.0
            bars[f"{name} against {against}"] = (other.mean, own.mean, half)
            if found.sign() > 0 or (not math.isfinite(found.half) and found.mean > 0):
                warned.append(f"{name} loses to its {against} inside its own interval, {found}")
        lines.append([name, *cells])
    for system, quantity in (("two", "loss, branched or from nothing"),):
        found = difference(rows, system, "scratch", quantity)
        if found is not None:
            warned.append(f"Two experts branched, less two trained from nothing at equal samples: {found}")
    write_csv(folder / "losses.csv", [row for row in rows if row["quantity"].startswith("loss")])
    headers = ["expert", "loss", "parent's", "difference", "control's", "difference"]
    items: list[Item] = [Table(headers, lines, numeric=range(1, 6)), *[Text(text) for text in warned]]
    if bars:
        path = interval_bars(folder / "inside.png", bars)
        items.append(Figure(path, "Inside each expert's interval.", "Loss against parent and control"))
    curves = {name: _over_bins(rows, name) for name in NEEDED}
    if all(curve[0] for curve in curves.values()):
        path = loss_curves(
            folder / "loss_over_noise.png",
            curves,
            smoothing=0.0,
            x_label="quantile of the training noise, lowest first",
        )
        items.append(Figure(path, "Held-out loss over the noise.", "Held-out loss over the noise"))
    return items


def _over_bins(rows: list[Row], system: str) -> tuple[list[float], list[float]]:
    found = {row["quantity"] for row in rows if row["quantity"].startswith("loss in bin ") and row["system"] == system}
    places = sorted(int(quantity.removeprefix("loss in bin ")) for quantity in found)
    values = [mean(rows, system, f"loss in bin {place}") for place in places]
    return [(place + 0.5) / len(places) for place in places], [one.mean for one in values]


def _pairings(rows: list[Row], quantities: list[str]) -> Table:
    """The pairing matrix: what replacing an expert by what it came from costs, at the first scale."""
    names = list(dict.fromkeys(row["system"] for row in rows if row["system"].startswith(f"{ENSEMBLE}, ")))
    scale = next((row["scale"] for row in rows if row["system"] in names), None)
    lines = []
    for name in names:
        found = [difference(rows, name, ENSEMBLE, quantity, scale) for quantity in quantities]
        lines.append([name.removeprefix(f"{ENSEMBLE}, "), *map(str, found)])
    caption = f"Less all experts, at guidance {scale}. A distance above 0 says that the expert is worth having."
    return Table(["expert replaced", *quantities], lines, caption, numeric=range(1, 1 + len(quantities)))


def _systems(folder: Path, rows: list[Row], schedule: Schedule, quantities: list[str], scales: list[float]) -> Table:
    """Table 1's form: every system with what it is of, what was measured here, and what papers report of its like."""
    table: list[Row] = []
    for name, members in schedule.ensembles.items():
        line: Row = {"system": name, "experts": len(members), "steps": schedule.total(members)}
        for quantity in quantities:
            found = mean(rows, name, quantity, scales[0])
            line[f"{quantity}, guidance {scales[0]:g}"] = "" if found is None else f"{found}".lstrip("+")
        quoted = schedule.quoted.get(name, {})
        line["quoted"] = ", ".join(f"{key} {own}" for key, own in quoted.items())
        table.append(line)
    write_csv(folder / "systems.csv", table)
    caption = "Quoted is eDiff-I's Table 1 (and its text): zero-shot FID-30K on COCO, nothing to compare ours with."
    return Table(list(table[0]), [list(line.values()) for line in table], caption, numeric=range(1, 3))
