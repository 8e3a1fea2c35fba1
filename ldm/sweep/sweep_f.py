"""The sweep over the downsampling factor (arXiv 2112.10752, figures 6 and 7): equal networks, equal budgets, any f."""

import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from ldm.config import compose, overriding
from ldm.device import choose
from ldm.errors import UserError
from ldm.evaluation.evaluate import curve_keys, evaluate
from ldm.evaluation.table import write_csv
from ldm.files import read_json, write_json
from ldm.holding import held
from ldm.installed import spoken, train_command
from ldm.loading import load
from ldm.report.plots import loss_curves, quality_over_speed
from ldm.training.loggers import log_summary

Row = dict[str, float]


def sweep_f(tree: dict[str, Any]) -> Path | None:
    """Run the sweep of `tree` (conf/sweep_f.yaml). Returns its folder, None if a training was stopped and saved."""
    factors = list(tree["f"])
    if not factors or any(f not in (1, 2, 4, 8, 16, 32) for f in factors) or len(set(factors)) < len(factors):
        raise UserError(f"f={factors}: a list of different powers of two from 1 to 32")
    folder = Path(tree["runs_dir"]) / tree["family"]
    with held(folder, "sweeping into"):
        return _swept(tree, folder, factors)


def _swept(tree: dict[str, Any], folder: Path, factors: list[int]) -> Path | None:
    steps, speed = [], []
    for f in factors:
        run = _train(tree, f)
        if run is None:
            return None
        for weights in sorted((run / "weights").glob("step_*.ema.safetensors")):
            step = int(weights.name[5:13])
            point = _quality(tree, folder / f"f{f}" / f"step_{step:08d}", weights, tree["num_steps"])
            steps.append({"f": f, "step": step, **point})
        for count in tree["sampling_steps"]:
            point = _quality(tree, folder / f"f{f}" / f"{count}_steps", run, count)
            rate = _samples_per_second(tree, folder / f"f{f}" / f"{count}_steps", run, count)
            speed.append({"f": f, "num_steps": count, "samples_per_second": rate, **point})
    _write(tree, folder, steps, speed)
    return folder


def _train(tree: dict[str, Any], f: int) -> Path | None:
    """The finished diffusion run of f, each training in a fresh process; None if one was stopped and saved."""
    runs, family = Path(tree["runs_dir"]), tree["family"]
    shared = [f"runs_dir={runs}", f"seed={tree['seed']}", f"logger.mode={tree['logger']['mode']}"]
    base, first_stage = runs / f"{family}-diffusion-f{f}", runs / f"{family}-autoencoder-f{f}"
    jobs, precision = [], "trainer.precision=auto"
    if f > 1:
        own = [f"autoencoder=f{f}", precision, *tree["autoencoder_overrides"].split()]
        jobs.append([f"experiment={family}/autoencoder", f"run={first_stage.name}", *own, *shared])
    own = [*([f"first_stage={first_stage}"] if f > 1 else []), precision, *tree["diffusion_overrides"].split()]
    jobs.append([f"experiment={family}/diffusion", f"run={base.name}", *own, *shared])
    for job in map(overriding, jobs):
        print(spoken(f"\n[f = {f}] python train.py {' '.join(job)}"), flush=True)
        words, environment = train_command()
        status = subprocess.run([*words, *job], env=environment).returncode
        if status == 3:
            return None
        if status:
            raise UserError(f"f={f}: train.py {' '.join(job)} ended with status {status}; its message is above")
    return base


def _quality(tree: dict[str, Any], folder: Path, model: Path, num_steps: int) -> Row:
    """KID and the rest at the sweep's guidance, kept in `folder` once measured."""
    words = [f"{key}={tree[key]}" for key in ("num_samples", "batch_size", "seed", "device")]
    words += [f"num_steps={num_steps}", f"model={model}", f"out={folder}", f"guidance.scale=[{tree['scale']}]"]
    rows, _ = evaluate({**compose("evaluate", words), "metric": tree["metric"]})
    return {name: value for name, value in rows[0].items() if name != "scale"}


def _samples_per_second(tree: dict[str, Any], folder: Path, run: Path, num_steps: int) -> float:
    """Throughput of one batch, decoded, after one to warm up; measured once and kept, so that a curve stays a curve."""
    kept = folder / "speed.json"
    if kept.exists():
        return read_json(kept)["samples_per_second"]
    device = choose(tree["device"])
    model = load(run).to(device)
    sampling = model.sampling({"sampler": None, "sigmas": None, "guidance": None, "num_steps": num_steps})
    guided = sampling.with_scale(tree["scale"])
    numbers = torch.arange(tree["batch_size"], device=device)
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        model.generate(guided, {"caption": [""] * len(numbers)}, numbers, tree["seed"]).cpu()  # waits for the device
        seconds = time.perf_counter() - began
    write_json(kept, {"samples_per_second": len(numbers) / seconds, "device": str(device), "batch": len(numbers)})
    return len(numbers) / seconds


def _write(tree: dict[str, Any], folder: Path, steps: list[Row], speed: list[Row]) -> None:
    """CSV files, plots and a W&B run."""
    for name, rows in (("steps", steps), ("speed", speed)):
        write_csv(folder / f"quality_over_{name}.csv", rows)
    quality, _ = curve_keys(steps[0])
    factors = sorted({row["f"] for row in steps})
    over_steps = {
        f"f = {f}": ([r["step"] for r in steps if r["f"] == f], [r[quality] for r in steps if r["f"] == f])
        for f in factors
    }
    over_speed = {
        f"f = {f}": [(r["samples_per_second"], r[quality], str(r["num_steps"])) for r in speed if r["f"] == f]
        for f in factors
    }
    pictures = {
        "quality_over_steps": loss_curves(
            folder / "quality_over_steps.png", over_steps, smoothing=0.0, y_label=quality
        ),
        "quality_over_speed": quality_over_speed(folder / "quality_over_speed.png", over_speed, quality_label=quality),
    }
    best = {f"best/f{f}": min(r[quality] for r in steps if r["f"] == f) for f in factors}
    tables = {"quality_over_steps": steps, "quality_over_speed": speed}
    logger = tree["logger"]
    log_summary(folder, tree["family"], logger["project"], logger["mode"], best, tables, pictures)
