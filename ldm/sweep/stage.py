"""What a cell needs beside training, as processes of their own: its cache, and its measurement."""

from pathlib import Path
from typing import Any

from ldm.build import Parts, load_autoencoder
from ldm.config import compose, named_in_step
from ldm.device import choose, device_clock
from ldm.evaluation.evaluate import evaluate
from ldm.evaluation.throughput import samples_per_second
from ldm.files import read_json, write_json
from ldm.latent_cache import encode
from ldm.loading import load
from ldm.ranks import is_rank_zero
from ldm.results.measured import write_measured
from ldm.sweep.budget import logged, step_of, weights_at_moments
from ldm.sweep.cells import Cell, Places, cells, diffusion_tree, settings_of
from ldm.training.callbacks.device_seconds import NAME
from ldm.training.distributed import process_group

Tree = dict[str, Any]
Row = dict[str, Any]
ENCODED = "encoded.json"


def run_stage(stage: str, cell_name: str, tree: Tree) -> None:
    """Run `stage` (encode, measure) of the cell of that name; done before, it does nothing."""
    run = named_in_step("stage", stage, STAGES)
    cell = named_in_step("cell", cell_name, {cell.name: cell for cell in cells(tree)})
    with process_group(choose(tree["device"])):
        run(tree, cell)


def _encode(tree: Tree, cell: Cell) -> None:
    places, done = Places(tree), Places(tree).measured(cell) / ENCODED
    device = choose(tree["device"])
    began = device_clock(device)
    data = diffusion_tree(tree, cell)["data"]
    words = [f"first_stage={places.first_stage(cell)}", f"out={places.cache(cell)}", f"device={tree['device']}"]
    encode({**compose("encode", words), "data": data})
    if is_rank_zero() and not done.exists():
        write_json(done, {"device_seconds": device_clock(device) - began})


def _measure(tree: Tree, cell: Cell) -> None:
    """Write the cell's row and its points."""
    places = Places(tree)
    folder, run = places.measured(cell), places.diffusion(cell)
    device = choose(tree["device"])
    began = device_clock(device)
    row: Row = {**_training(places, cell), **_parameters(places, cell)}
    if cell.f > 1:
        row |= _reconstruction(tree, places.first_stage(cell), folder)
    points: list[Row] = []
    kind = "ema" if diffusion_tree(tree, cell)["ema"] else "raw"
    weights = weights_at_moments(run, tree["moments"], row["steps"], kind)
    for path in weights:
        point = quality(tree, folder, path, tree["num_steps"])
        points.append({"curve": "steps", "step": step_of(path), "num_steps": tree["num_steps"], **point})
    row |= points[-1] if points else {}
    for count in tree["sampling_steps"]:
        point = quality(tree, folder, weights[-1], count)
        rate = _samples_per_second(tree, folder, run, count)
        points.append(
            {
                "curve": "speed",
                "step": step_of(weights[-1]),
                "num_steps": count,
                "samples_per_second": rate,
                **point,
            }
        )
    if not is_rank_zero():
        return
    row["samples_per_second"] = _samples_per_second(tree, folder, run, tree["num_steps"])
    encoded = read_json(folder / ENCODED)["device_seconds"] if (folder / ENCODED).exists() else 0.0
    row |= {"encode_device_seconds": encoded, "measure_device_seconds": device_clock(device) - began}
    row = {key: value for key, value in row.items() if key not in ("curve", "step")}
    write_measured(folder, settings_of(tree, cell), row, points)


STAGES = {"encode": _encode, "measure": _measure}


def _training(places: Places, cell: Cell) -> Row:
    """What the training took, from the runs' own logs."""
    run = places.diffusion(cell)
    row = {"steps": read_json(run / "lineage.json")["finished_step"], "device_seconds": logged(run, NAME)[-1][1],
           "memory_gib": max(value for _, value in logged(run, "speed/memory_gib")),
           "first_stage_steps": None, "first_stage_device_seconds": 0.0}  # fmt: skip
    if cell.f > 1:
        first = places.first_stage(cell)
        row["first_stage_steps"] = read_json(first / "lineage.json")["finished_step"]
        row["first_stage_device_seconds"] = logged(first, NAME)[-1][1]
    return row


def _parameters(places: Places, cell: Cell) -> Row:
    network = load(places.diffusion(cell))
    row = {"parameters": sum(p.numel() for p in network.denoiser.network.parameters()), "channels": None}
    if cell.f > 1:
        parts: Parts = load_autoencoder(places.first_stage(cell))[0]
        row["channels"] = parts["regularizer"].latent_channels
        row["first_stage_parameters"] = sum(p.numel() for p in parts["autoencoder"].parameters())
    return row


def _reconstruction(tree: Tree, run: Path, folder: Path) -> Row:
    """The first stage's rFID (under its backbone's name), PSNR and SSIM on its validation images."""
    words = [f"model={run}", f"out={folder / 'first_stage'}", *_shared(tree)]
    rows, _ = evaluate({**compose("evaluate", words), "metric": tree["metric"]})
    wanted = ("psnr", "ssim", "rfid/", "rfd/", "rkid/")
    return {row["metric"]: row["value"] for row in rows if row["metric"].startswith(wanted)}


def _shared(tree: Tree) -> list[str]:
    return [f"{key}={tree[key]}" for key in ("num_samples", "batch_size", "device")] + ["seed=0"]


def quality(tree: Tree, folder: Path, weights: Path, num_steps: int) -> Row:
    """KID and the rest at the guidance `scale` of a tree, kept in `folder` once measured."""
    out = folder / f"{weights.name.partition('.')[0]}-{num_steps}_steps"
    words = [
        *_shared(tree),
        f"num_steps={num_steps}",
        f"model={weights}",
        f"out={out}",
        f"guidance.scale=[{tree['scale']}]",
    ]
    words += [f"reference={tree['reference']}"] if tree["reference"] else []
    rows, _ = evaluate({**compose("evaluate", words), "metric": tree["metric"]})
    return {name: value for name, value in rows[0].items() if name != "scale"} if rows else {}


def _samples_per_second(tree: Tree, folder: Path, run: Path, num_steps: int) -> float:
    """Throughput of one batch, decoded, by the device's clock, after one to warm up; measured once and kept."""
    device = choose(tree["device"])
    how = f"{num_steps}_steps-batch_{tree['batch_size']}-scale_{float(tree['scale']):g}-{device.type}"
    kept = folder / f"speed-{how}.json"
    if kept.exists():
        return read_json(kept)["samples_per_second"]
    model = load(run).to(device)
    sampling = model.sampling({"sampler": None, "sigmas": None, "guidance": None, "num_steps": num_steps})
    short = model.sampling({"sampler": None, "sigmas": None, "guidance": None, "num_steps": min(2, num_steps)})
    short, sampling = (each.with_scale(tree["scale"]) for each in (short, sampling))
    rate = samples_per_second(model, short, sampling, tree["batch_size"], device)
    if is_rank_zero():
        write_json(kept, {"samples_per_second": rate, "device": str(device), "batch": tree["batch_size"]})
    return rate
