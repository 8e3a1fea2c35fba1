"""A curve that training draws: the numbers as CSV and a plain line chart of them as PNG. The report has its own."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ldm.files import write_bytes, write_text


@dataclass(frozen=True)
class Curve:
    """Values `y` at `x`, with what the axes are called; the names head the columns of the CSV too."""

    x_name: str
    y_name: str
    x: Sequence[float]
    y: Sequence[float]


def save_curve(path: Path, curve: Curve) -> Path:
    """Write the chart to `path`, which ends in .png, and the numbers beside it as .csv; returns `path`."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow((curve.x_name, curve.y_name))
    writer.writerows((repr(x), repr(y)) for x, y in zip(curve.x, curve.y, strict=True))
    write_text(path.with_suffix(".csv"), table.getvalue())
    figure = Figure(figsize=(6, 3.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(curve.x, curve.y)
    axes.set(xlabel=curve.x_name, ylabel=curve.y_name)
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return write_bytes(path, buffer.getvalue())
