"""What a W&B run shows of quality besides curves: quality against alignment in tables and plots, best values, axes.

All of it is made anew at each point from the run's metrics.csv, so that a run that was requeued shows the same.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pytorch_lightning.loggers.logger import Logger

from ldm.training.loggers import CSVLog, WandB, curves

PREFIX, AT_SCALE = "quality/", "@scale_"
AXIS = "quality/samples_seen"  # along the lineage, so that a tree of experts is one plot
NO_METRICS = frozenset(
    ("parent", "kid_std", "nan_images", "seconds", "share", "samples_seen", "device_hours", "samples_per_second")
)
ALIGNMENTS, DISTANCES = ("clip_score", "alignment_score"), ("kid", "fid", "fd")
Curves = dict[str, tuple[list[int], list[float]]]


class Axes(NamedTuple):
    """The names of what is drawn against each other."""

    alignment: str
    distance: str


def log_quality(loggers: Sequence[Logger], values: dict[str, float], step: int) -> None:
    """Log a point of ``quality/...``; W&B, where there is one, draws it over the samples seen, and all so far."""
    pages = [logger for logger in loggers if isinstance(logger, WandB)]
    for page in pages:
        page.drawn_over(AXIS, [name for name in values if name != AXIS])
    for logger in loggers:
        logger.log_metrics(values, step)
    csv = next((own.path for own in loggers if isinstance(own, CSVLog) and own.path.exists()), None)
    found = {name: curve for name, curve in curves(csv).items() if name.startswith(PREFIX)} if csv and pages else {}
    for page in pages:
        page.log_metrics(_plots(found), step)


def is_metric(name: str) -> bool:
    """Whether ``quality/...`` says how good the run is, and not what that cost, nor how good its parents are."""
    return name.removeprefix(PREFIX).partition("/")[0] not in NO_METRICS


def _plots(found: Curves) -> dict[str, Any]:
    """Quality against alignment: a line over the steps for each scale, and over the scales for each step."""
    axes = axes_of([name.removeprefix(PREFIX) for name in found])
    rows = list(trade_off(found, axes)) if axes else []
    if not rows:
        return {}
    import wandb as client

    several = len({scale for _, scale, *_ in rows}) > 1
    kinds = {"over_steps": "scale", **({"over_scales": "step"} if several else {})}
    return {
        f"trade_off/{name}": client.plot.line(
            client.Table(["step", "scale", *axes], rows), axes.alignment, axes.distance, line,
            title=f"{axes.distance} against {axes.alignment}, {name.replace('_', ' ')}",
        )
        for name, line in kinds.items()
    }  # fmt: skip


def axes_of(names: Sequence[str]) -> Axes | None:
    """An alignment and a distance among ``METRIC/BACKBONE``; None where one is missing."""
    by_metric = {name.partition("/")[0]: name.partition(AT_SCALE)[0] for name in names}
    alignment, distance = (
        next((by_metric[metric] for metric in sought if metric in by_metric), "") for sought in (ALIGNMENTS, DISTANCES)
    )
    return Axes(alignment, distance) if alignment and distance else None


def trade_off(found: Curves, axes: Axes) -> Iterator[list[Any]]:
    """Rows of step, scale (``own`` where none was asked for), alignment, distance, in the order of scales and steps."""
    for name in found:
        metric, _, scale = name.removeprefix(PREFIX).partition(AT_SCALE)
        other = PREFIX + axes.alignment + name.removeprefix(PREFIX + metric)
        if metric == axes.distance and other in found:
            aligned = dict(zip(*found[other], strict=True))
            for step, distance in zip(*found[name], strict=True):
                if step in aligned:
                    yield [step, scale or "own", aligned[step], distance]
