"""Curves over scales of guidance: their rows, and how they are written and drawn, alone and as a grid."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.drawer import Drawer
from ldm.evaluation.guidance_curve import LOST, Point, is_alignment
from ldm.evaluation.paired import by_subset
from ldm.evaluation.protocol import Protocol
from ldm.evaluation.table import ends, write_csv
from ldm.report.plots import Bars, trade_off
from ldm.sampling import Sampling

Row = dict[str, Any]


@dataclass
class Curve:
    """Scales of guidance of one drawer under one recipe, and the points of them that are `done`, kept in `folder`."""

    model: Drawer
    tree: dict[str, Any]  # what asks for this curve alone
    columns: dict[str, str | int | float]  # what distinguishes it from the other curves of a grid
    folder: Path
    sampling: Sampling
    scales: list[float]
    identity: str
    done: dict[str, Point]
    protocol: Protocol | None = None

    @property
    def missing(self) -> list[float]:
        """The scales that are not measured yet."""
        return [scale for scale in self.scales if f"{scale:g}" not in self.done]

    @property
    def rows(self) -> list[Row]:
        """Of the table, one for each scale; all are measured."""
        return [self._row(scale) for scale in self.scales]

    @property
    def subsets(self) -> list[Row]:
        """The rows again, one for each of the protocol's subsets of samples."""
        names = self.protocol.subsets if self.protocol else ()
        return [
            {**self.columns, "scale": row["scale"], **subset} for row in self.rows for subset in by_subset(row, names)
        ]

    @property
    def label(self) -> str:
        """Its name among the curves of a grid; the model's where it is alone."""
        return ", ".join(f"{key} {value}" for key, value in self.columns.items()) or self.model.name

    def _row(self, scale: float) -> Row:
        row = {**self.columns, "scale": scale, LOST: 0, **self.done[f"{scale:g}"]}  # older points were all finite
        row[LOST] = row.pop(LOST)  # last
        return self.protocol.beside_row(row, self.model, self.sampling, self.tree) if self.protocol else row


def write(folder: Path, curves: list[Curve]) -> list[Row]:
    """The rows of all curves: each in its own folder as curve.csv and curve.png, those of a grid together as grid.*.

    Where a protocol has subsets of the samples, subsets.csv has a row for each, and each scale.
    """
    for curve in curves:
        _draw(curve.folder / "curve", [curve])
        if curve.subsets:
            write_csv(curve.folder / "subsets.csv", curve.subsets)
    if curves[0].columns:
        _draw(folder / "grid", curves)
    return [row for curve in curves for row in curve.rows]


def _draw(stem: Path, curves: list[Curve]) -> None:
    rows = [row for curve in curves for row in curve.rows]
    write_csv(stem.with_suffix(".csv"), rows)
    quality, alignment = curve_keys(rows[0])
    if alignment and all(alignment in row and quality in row for row in rows):
        named = {curve.label: [(row["scale"], row[quality], row[alignment]) for row in curve.rows] for curve in curves}
        bars = {curve.label: [_bars(row, quality, alignment) for row in curve.rows] for curve in curves}
        trade_off(
            stem.with_suffix(".png"), named, quality_label=quality, alignment_label=alignment,
            bars=bars if all(bar for own in bars.values() for bar in own) else None,
        )  # fmt: skip


def _bars(row: Mapping[str, Any], quality: str, alignment: str) -> Bars | None:
    """The intervals of a row's quality and alignment; None where it has none."""
    keys = (*ends(quality), *ends(alignment))
    return tuple(row[key] for key in keys) if all(math.isfinite(row.get(key, math.nan)) for key in keys) else None


def curve_keys(point: Mapping[str, Any]) -> tuple[str, str | None]:
    """The columns of a point that make the curve: its KID, or its FID without one, and its alignment, if it has one."""
    qualities = [name for name in point if name.startswith(("kid/", "fid/", "fd/"))]
    return max(qualities, key=lambda name: name.startswith("kid/")), next(filter(is_alignment, point), None)
