"""What capacity costs: many experts of one network, or the network made deeper (eDiff-I, arXiv:2211.01324, Fig. 13).

Times are means of evaluations at the levels of noise that the run's sampler asks for, without guidance, as the paper's
are of forward passes.
"""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.asked import check_folder
from ldm.build import Parts
from ldm.config.numbers import check_least
from ldm.device import choose, device_clock
from ldm.diffusion.boundaries import equal_shares
from ldm.drawer import Drawer
from ldm.ensemble_model import Ensemble
from ldm.errors import UserError
from ldm.evaluation.logged import log
from ldm.evaluation.table import write_csv
from ldm.generate import latent_shape
from ldm.measuring import conditions
from ldm.model import Model, load_model
from ldm.report.plots import loss_curves
from ldm.sampling import levels_asked

Row = dict[str, Any]
DEEPER = ("depth", "num_blocks")  # of the networks here
MOST = 4096  # experts, all in memory


def expert_cost(tree: dict[str, Any]) -> tuple[list[Row], Path]:
    """Rows for each number of experts and for the deepened network beside it (conf/expert_cost.yaml), and the folder.

    A row has `system`, `experts`, `parameters_m` (millions, of networks), `seconds_per_image` and `ratio`, that to the
    one network's. Raises ValueError for numbers that cannot be, and for a network that nothing makes deeper.
    """
    counts, passes, size = tree["experts"], tree["passes"], tree["batch_size"]
    if not isinstance(counts, list) or not counts or not all(type(n) is int and 0 < n <= MOST for n in counts):
        raise UserError(f"experts={counts}: a list of how many there are, such as [1,2,4,8,16], up to {MOST}")
    check_least(tree, {"passes": 1, "batch_size": 1})
    check_folder("out", tree["out"])
    device, model = choose(tree["device"]), load_model(Path(tree["model"]).expanduser())
    key = _deeper(model, tree["deepen"])
    counts = sorted({1, *counts})
    for count in counts:  # a mistake is told before anything is measured
        _as_large(model, key, count)
    rows: list[Row] = []
    for system, count, drawer, depth in _systems(model, counts, key):
        networks = drawer.to(device).tuned().networks  # type: ignore[attr-defined]  # of models and ensembles
        parameters = sum(p.numel() for network in networks for p in network.parameters())
        seconds = _seconds_per_image(drawer, model, passes, size, device)
        del drawer, networks
        row = {"system": system, "experts": count, key: depth, "parameters_m": round(parameters / 1e6, 3)}
        rows.append({**row, "seconds_per_image": seconds})
    for row in rows:
        row["ratio"] = row["seconds_per_image"] / rows[0]["seconds_per_image"]
    folder = Path(tree["out"])
    write_csv(folder / "expert_cost.csv", rows)
    names = dict.fromkeys(row["system"] for row in rows)
    systems = {name: [row for row in rows if row["system"] == name] for name in names}
    _draw(folder / "expert_cost.png", systems)
    log(tree, folder, systems, {"expert_cost": folder / "expert_cost.png"})
    return rows, folder


def _deeper(model: Model, asked: str | None) -> str:
    """The key of the network that says how deep it is."""
    network = model.parts.tree["network"]
    keys = DEEPER if asked is None else (asked,)
    found = [key for key in keys if type(network.get(key)) is int]
    if not found:
        raise UserError(f"deepen={' or '.join(keys)}: the network of {model.name} has no such number")
    return found[0]


def _systems(model: Model, counts: list[int], key: str) -> Iterator[tuple[str, int, Drawer, int]]:
    """(system, experts, what draws, depth): experts of equal shares of the noise, then networks as large as they."""
    depth, noise = model.parts.tree["network"][key], model.parts["noise"]
    for count in counts:
        members = [replace(model, denoiser=deepcopy(model.denoiser)) for _ in range(count)]
        yield "experts", count, Ensemble(model.name, members, [[each] for each in equal_shares(noise, count)]), depth
    for count in counts:
        deep = _as_large(model, key, count)
        parts = _with(model, key, deep)
        denoiser = parts["denoiser"].eval().requires_grad_(False)
        yield "one network, deeper", count, replace(model, denoiser=denoiser, parts=parts), deep


def _with(model: Model, key: str, depth: int) -> Parts:
    tree = {**model.parts.tree, "network": {**model.parts.tree["network"], key: depth}}
    return Parts(tree, first_stage=model.first_stage, conditioner=model.conditioner)


def _as_large(model: Model, key: str, count: int) -> int:
    """The depth at which one network has about the parameters of `count` as deep as the model's: each step deeper adds
    as many.
    """
    depth, sizes = model.parts.tree["network"][key], []
    for more in (0, 1):
        with torch.device("meta"):
            sizes.append(sum(p.numel() for p in _with(model, key, depth + more)["network"].parameters()))
    if sizes[1] <= sizes[0]:
        raise UserError(f"deepen={key}: one more of it gives the network of {model.name} no more parameters")
    return depth + round((count - 1) * sizes[0] / (sizes[1] - sizes[0]))


@torch.no_grad()
def _seconds_per_image(drawer: Drawer, model: Model, passes: int, size: int, device: torch.device) -> float:
    """Of all evaluations that an image takes, each the mean of `passes`."""
    sampling = drawer.sampling({"guidance": None}).with_scale(1.0)
    model.data.setup()
    batch, numbers = next(conditions(model.data, size, size))
    batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    denoise = drawer.guided(sampling, {**batch, "number": numbers.to(device)}, len(numbers))
    shape = latent_shape(model.first_stage, model.image_size)
    levels = levels_asked(sampling.sampler, sampling.sigmas)
    x = torch.randn(len(numbers), *shape, generator=torch.Generator().manual_seed(0)).to(device)

    def evaluate(level: float) -> None:
        denoise(level * x, x.new_full((len(x),), level))

    for level in levels:  # conditions are encoded, kernels chosen
        evaluate(level)
    began = device_clock(device)
    for level in islice(cycle(levels), passes):
        evaluate(level)
    seconds = (device_clock(device) - began) / passes
    assert math.isfinite(seconds)
    return seconds * len(levels) / len(numbers)


def _draw(path: Path, systems: dict[str, list[Row]]) -> None:
    curves = {}
    for system, own in systems.items():
        curves[system] = ([row["parameters_m"] for row in own], [row["seconds_per_image"] for row in own])
    loss_curves(path, curves, smoothing=0.0, x_label="parameters, millions", y_label="seconds per image")
