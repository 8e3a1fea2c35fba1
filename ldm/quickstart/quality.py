"""The report's section on how the quality of samples went while the models trained."""

from typing import Any

from ldm.quickstart.found import Found
from ldm.report.page import Figure, Section
from ldm.report.plots import loss_curves

OVER = "quality/samples_seen"  # along the lineage
SHOWN = ("quality/kid/", "quality/alignment_score/", "quality/clip_score/")
Curve = tuple[list[Any], list[float]]


def quality(found: Found) -> list[Section]:
    """What callback.quality logged of the diffusion model and its branches; nothing where it did not."""
    chain = found.chain
    runs = (chain.base, *chain.experts, *([chain.control] if chain.nodes else []))
    logged = {run.name.removeprefix(f"{chain.family}-"): found.logs[run] for run in runs}
    shown: dict[str, str] = {}  # at the first scale of guidance, where there are several
    for name in found.logs[chain.base]:
        if name.startswith(SHOWN):
            shown.setdefault(short(name.removeprefix("quality/")), name)
    if not shown:
        return []
    figures = []
    for what, name in shown.items():
        series = {who: over(log[OVER], log[name]) for who, log in logged.items() if name in log}
        path = found.folder / f"quality-{what.lower().replace(' ', '-')}.png"
        path = loss_curves(path, series, smoothing=0, x_label="samples seen, with its parents'", y_label=what)
        figures.append(Figure(path, name, f"{what} over the samples seen"))
    asked = found.trees[chain.base]["callback"]["quality"]
    intro = (
        f"{asked['num_samples']} samples of the averaged weights every {asked['every_steps']} steps, for the same "
        "captions and from the same noise each time, against training images; W&B shows these curves too. So few "
        "samples tell that it learns, not how good it is."
    )
    return [Section("Does it get better?", intro, figures)]


def over(axis: Curve, curve: Curve) -> Curve:
    """A curve over what `axis` says of its steps."""
    place = dict(zip(*axis, strict=True))
    return [place[step] for step in curve[0]], curve[1]


def short(column: str) -> str:
    """What a metric is called in plots and tables."""
    name = column.partition("/")[0]
    return {"kid_std": "sd of KID", "is": "IS"}.get(name, name.upper() if len(name) < 4 else name.replace("_", " "))
