"""Samplers against each other on one model: quality at equal steps and at equal evaluations of the network.

From the same noise and captions; points that are measured are kept, so that a table can be stopped, and made larger.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.build import Parts
from ldm.config import compose, groups
from ldm.errors import UserError
from ldm.evaluation.evaluate import curve_keys, evaluate
from ldm.evaluation.table import write_csv
from ldm.holding import held
from ldm.report.plots import loss_curves
from ldm.sampling import levels_asked

Row = dict[str, Any]


def sampler_table(tree: dict[str, Any]) -> tuple[list[Row], Path]:
    """Measure the model of `tree` (conf/sampler_table.yaml) with every sampler and number of steps.

    Returns a row for each pair, and the folder with ``table.csv`` and ``quality_over_evaluations.png``.
    """
    known = groups()["sampler"]
    samplers = list(tree["samplers"] or known)
    for name in samplers:
        if name not in known:
            raise UserError(f"samplers: no sampler {name}; there are {', '.join(known)}")
    if not tree["steps"] or min(tree["steps"]) < 1:
        raise UserError(f"steps={tree['steps']}: needs at least one number of steps, none below 1")
    path = Path(tree["model"])
    folder = Path(tree["out"]) if tree["out"] else (path if path.is_dir() else path.parent) / f"samplers-{path.stem}"
    with held(folder, "evaluating into"):
        rows = [_row(tree, folder, name, count) for name in samplers for count in sorted(tree["steps"])]
        return _written(folder, samplers, rows)


def _written(folder: Path, samplers: list[str], rows: list[Row]) -> tuple[list[Row], Path]:
    write_csv(folder / "table.csv", rows)
    quality, _ = curve_keys(rows[0])
    curves = {}
    for name in samplers:
        own = [row for row in rows if row["sampler"] == name]
        curves[name] = ([row["evaluations"] for row in own], [row[quality] for row in own])
    picture = folder / "quality_over_evaluations.png"
    loss_curves(picture, curves, smoothing=0.0, x_label="evaluations of the denoiser", y_label=quality)
    return rows, folder


def _row(tree: dict[str, Any], folder: Path, name: str, num_steps: int) -> Row:
    """Quality of one sampler in `num_steps`, measured or as it was kept."""
    print(f"[{name}, {num_steps} steps]", flush=True)
    keys = ("model", "ema", "num_samples", "seed", "batch_size", "device")
    words = [f"{key}={tree[key]}" for key in keys] + [f"guidance.scale=[{tree['scale']}]", f"num_steps={num_steps}"]
    point = compose("evaluate", [*words, f"sampler={name}", f"out={folder / f'{name}_{num_steps}'}"])
    rows, _ = evaluate({**point, "metric": tree["metric"], "alignment": tree["alignment"]})
    measured = {key: value for key, value in rows[0].items() if key != "scale"}
    sampler = Parts({"sampler": point["sampler"]})["sampler"]
    return {"sampler": name, "steps": num_steps, "evaluations": evaluations(sampler, num_steps), **measured}


def evaluations(sampler: Callable[..., Tensor], num_steps: int) -> int:
    """How often a sampler asks the denoiser on a sigma schedule of `num_steps` that ends in 0."""
    return len(levels_asked(sampler, torch.linspace(1, 0, num_steps + 1)))
