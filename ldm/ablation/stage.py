"""What a cell needs beside training, as processes of their own: the cache that all share, and its measurement."""

from typing import Any

from ldm.ablation.cells import Cell, Places, cell_named, cell_words, data_words, settings_of
from ldm.ablation.plan import Plan, read_plan
from ldm.config import compose, named_in_step
from ldm.device import choose
from ldm.files import read_json
from ldm.latent_cache import encode
from ldm.loading import load
from ldm.ranks import is_rank_zero
from ldm.results.measured import write_measured
from ldm.sweep.budget import logged, step_of, weights_at_moments
from ldm.sweep.stage import quality
from ldm.training.callbacks.device_seconds import NAME
from ldm.training.distributed import process_group

Tree = dict[str, Any]
Row = dict[str, Any]


def run_stage(stage: str, cell_name: str, tree: Tree) -> None:
    """Run `stage` (encode, measure) of the cell of that name."""
    run, plan = named_in_step("stage", stage, STAGES), read_plan(tree["plan"])
    cell = cell_named(tree, plan, cell_name)
    with process_group(choose(tree["device"])):
        run(tree, plan, cell)


def _encode(tree: Tree, plan: Plan, cell: Cell) -> None:
    """Latents and features of all images and texts, of the data of the first row; what is there is not made again."""
    places, own = Places(tree, plan), compose("config", data_words(tree, plan))
    words = [f"first_stage={places.first_stage}", f"out={places.cache}", f"device={tree['device']}"]
    shared = ("data", "derived", "conditioner", "representation", "image_size")
    encode({**compose("encode", words), **{key: own[key] for key in shared}})


def _measure(tree: Tree, plan: Plan, cell: Cell) -> None:
    """Write the row of a cell that train.py has trained, and its points."""
    places, trained = Places(tree, plan), compose("config", cell_words(tree, plan, cell))
    run, kind = places.run(cell), "ema" if trained["ema"] else "raw"
    steps = read_json(run / "lineage.json")["finished_step"]
    seconds = dict(logged(run, NAME))
    points: list[Row] = []
    for path in weights_at_moments(run, tree["moments"], steps, kind):
        step = step_of(path)
        found = quality(tree, places.measured(cell), path, tree["num_steps"])
        points.append({"steps": step, "device_seconds": seconds[max(seconds)] * step / steps, **found})
    network = load(run).denoiser.network
    row = {"parameters": sum(parameter.numel() for parameter in network.parameters()), **points[-1]}
    row |= {"batch_size": trained["data"]["batch_size"], "device_seconds": seconds[max(seconds)]}
    if is_rank_zero():
        keep(tree, plan, cell, row, points)


def keep(tree: Tree, plan: Plan, cell: Cell, row: Row, points: list[Row]) -> None:
    """What has been measured of a cell, for the process that asked for it, with the settings that it is of."""
    write_measured(Places(tree, plan).measured(cell), settings_of(tree, plan, cell), row, points)


STAGES = {"encode": _encode, "measure": _measure}
