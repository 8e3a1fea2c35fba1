"""The likelihood of held-out samples under a diffusion model as a job: bits per dimension, each with its 95 % interval.

Each batch that is measured is kept, so that the same command goes on after a kill; any number of processes share them.
"""

import hashlib
import json
import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.config.numbers import check_least
from ldm.data.batches import Batches
from ldm.data.errors import printable
from ldm.data.module import ShardData
from ldm.device import choose
from ldm.diffusion.likelihood import Bound, middles
from ldm.drawer import Drawer, check_conditions
from ldm.ensemble_model import Ensemble
from ldm.errors import UserError
from ldm.evaluation.nats import Costs, Meter, of_pixels
from ldm.evaluation.rate_distortion import write_rate_distortion
from ldm.evaluation.table import write_csv
from ldm.files import replace, write_json
from ldm.holding import held
from ldm.loading import load_drawer
from ldm.measuring import Ranks, in_rounds
from ldm.model import Model
from ldm.training.distributed import collect, process_group, together

log = logging.getLogger(__name__)

Row = dict[str, Any]
# What the costs of a sample depend on, beside the weights and the data; neither their number nor the batches.
FACTS = ("seed", "num_timesteps", "num_levels", "ode", "num_probes", "tolerance", "decode", "use_conditions")


def measure_likelihood(tree: dict[str, Any]) -> tuple[list[Row], Path]:
    """Measure the model of `tree` (conf/likelihood.yaml); returns rows (metric, value, half_interval, samples).

    And the folder with ``likelihood.csv`` and ``.json``, ``samples.csv`` and ``rate_distortion.csv`` and ``.png``. No
    rows on ranks but 0; an error of one is raised on all.
    """
    check_numbers(tree)
    path, device = Path(tree["model"]).expanduser(), choose(tree["device"])
    with process_group(device) as (rank, world_size), ExitStack() as stack:
        with together():
            model = cast(Model | Ensemble, load_drawer(path, tree["first_stage"], tree["ema"])).to(device).tuned()
            meter = _meter(model, tree)
            data, count = _held_out(model, tree, meter)
            own = (path if path.is_dir() else path.parent) / f"likelihood-{model.name}"
            folder = Path(tree["out"]) if tree["out"] else own
            if rank == 0:
                stack.enter_context(held(folder, "evaluating into"))
            kept = folder / "kept" / _identity(tree, model, data)
            loader = data.statistics_loader if tree["data"] else data.validation_loader
            batches = loader(rank, world_size, tree["batch_size"], count)
        parts: list[Costs] = []
        keys: dict[int, str] = {}
        source = _measured(meter, batches, kept, device, (rank, world_size, count))
        for found, mine in in_rounds(source, Ranks(device, rank, world_size)):
            if mine:
                costs, batch = found
                parts.append(costs)
                keys |= dict(zip(costs["index"].tolist(), batch["key"], strict=True))
        every = collect((parts, keys))
        if rank:
            return [], folder
        measured = [costs for own, _ in every for costs in own]
        whole = {name: torch.cat([costs[name] for costs in measured]) for name in measured[0]}
        order = whole["index"].argsort()
        whole = {name: value[order] for name, value in whole.items()}
        return _write(folder, tree, meter, whole, {i: key for _, own in every for i, key in own.items()}, data), folder


def check_numbers(tree: dict[str, Any]) -> None:
    """Raises ValueError for a number of `tree` that nothing can be measured with."""
    check_least(tree, {"num_samples": 2, "num_timesteps": 2, "num_probes": 1, "batch_size": 1})
    if tree["num_levels"] is not None and not 1 <= tree["num_levels"] < tree["num_timesteps"]:
        raise UserError(
            f"num_levels={tree['num_levels']}: must be at least 1, and less than num_timesteps="
            f"{tree['num_timesteps']}; null takes all steps of the chain"
        )
    if not tree["tolerance"] > 0:
        raise UserError(f"tolerance={tree['tolerance']}: must be above 0, bits per dimension")


def _meter(model: Model | Ensemble, tree: dict[str, Any]) -> Meter:
    sampling = model.sampling({"guidance": {"scale": 1.0}, "use_conditions": tree["use_conditions"]})
    names = ("num_timesteps", "num_levels", "ode", "num_probes", "tolerance", "decode", "seed")
    return Meter(model, model.first_stage, sampling, **{name: tree[name] for name in names})


def _held_out(model: Drawer, tree: dict[str, Any], meter: Meter) -> tuple[ShardData, int]:
    """The data, and how many of its samples are measured. Raises ValueError for data without what the model reads."""
    data = model.data.over(tree["data"], "data") if tree["data"] else model.data
    data.setup()
    there = data.num_train if tree["data"] else data.num_validation
    count = min(tree["num_samples"], there)
    if count < 2:
        raise UserError(f"model={tree['model']}: {there} held-out samples are there to measure; name more with data=")
    spec = data.batch_spec
    if meter.first_stage.key not in spec:
        raise UserError("data.with_images=false: there are no images, of which the likelihood is taken")
    check_conditions(model, spec, meter.sampling)
    return data, count


def _identity(tree: dict[str, Any], model: Model | Ensemble, data: ShardData) -> str:
    facts = {key: tree[key] for key in FACTS} | {
        "weights": [weights.digest for weights in model.weights],
        "first_stage": model.first_stage.spec.fingerprint,
        "data": data.fingerprint,
        "image_size": data.image_size,
        "of": "data" if tree["data"] else "validation",
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def _measured(
    meter: Meter, batches: Batches, kept: Path, device: torch.device, share: tuple[int, int, int]
) -> Iterator[tuple[Costs, dict[str, Any]]]:
    """The costs of each batch, from a file of `kept` if they are there; `share` is (rank, world size, all samples)."""
    rank, world_size, count = share
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(), disable=rank != 0) as bars:
        bar = bars.add_task(f"measuring {meter.model.name}", total=count)
        for batch in batches:
            name = hashlib.sha256(json.dumps(batch["index"].tolist()).encode()).hexdigest()[:24]
            file = kept / f"{name}.safetensors"
            if file.exists():
                costs = load_file(file)
            else:
                costs = meter({k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()})
                _check_finite(costs, batch["key"], meter.model.name)
                replace(file, partial(save_file, costs))
            yield costs, batch
            bars.advance(bar, min(world_size * len(batch["key"]), count))


def _check_finite(costs: Costs, keys: list[str], name: str) -> None:
    parts = [value.flatten(1) if value.ndim > 1 else value[:, None] for value in costs.values()]
    finite = torch.cat([part.isfinite() for part in parts], 1).all(1).tolist()
    for key in [key for key, whole in zip(keys, finite, strict=True) if not whole]:
        raise UserError(f"model={name}: the likelihood of {printable(key)} is not finite; look at its weights")


def interval(values: Tensor) -> tuple[float, float]:
    """Mean of values [N] over samples, and half of its 95 % interval, 1.96 sd / sqrt(N)."""
    return values.mean().item(), 1.96 * values.std().item() / math.sqrt(len(values))


def _write(
    folder: Path, tree: dict[str, Any], meter: Meter, costs: Costs, keys: dict[int, str], data: ShardData
) -> list[Row]:
    pixels, sigmas = of_pixels(meter.first_stage), middles(meter.chain, tree["num_levels"])
    unit = "bits_per_dim" if pixels else "bits_per_latent_dim"
    side = data.framing.window // meter.first_stage.spec.f
    size = math.prod(meter.first_stage.spec.shape((side, side)))
    bound = meter.bound(costs, size, sigmas)
    bits = {name: nats / (size * math.log(2)) for name, nats in _nats(bound, costs).items()}
    rows = []
    for name, values in bits.items():
        mean, half = interval(values)
        rows.append({"metric": f"{unit}/{name}", "value": mean, "half_interval": half, "samples": len(values)})
    if tree["ode"]:
        error = costs["ode_error"] / (size * math.log(2))
        apart = int((error > tree["tolerance"]).sum())
        if apart:
            log.warning(
                f"the ODE of {apart} of {len(error)} samples is not solved to tolerance={tree['tolerance']}: the last "
                f"two solutions are up to {error.max().item():.2g} bits per dimension apart"
            )
    chain = meter.chain
    protocol = {
        "model": meter.model.name,
        "weights": [weights.digest for weights in meter.model.weights],
        "data": data.fingerprint,
        "samples": len(costs["index"]),
        "of": "8 bit pixels, for the ODE with uniform noise"
        if pixels
        else "whitened latents, drawn from the posterior",
        "dimensions": size,
        "sigma_min": chain[0].item(),
        "sigma_max": chain[-1].item(),
        **{key: tree[key] for key in FACTS},
    }
    write_json(folder / "likelihood.json", {"protocol": protocol, "metrics": rows})
    write_csv(folder / "likelihood.csv", rows)
    methods = [name for name in bits if "." not in name]
    write_csv(
        folder / "samples.csv",
        [
            {"index": index, "key": printable(keys[index]), **{name: bits[name][row].item() for name in methods}}
            for row, index in enumerate(costs["index"].tolist())
        ],
    )
    write_rate_distortion(folder, bound, unit, meter.shows_pixels)
    return rows


def _nats(bound: Bound, costs: Costs) -> dict[str, Tensor]:
    """What a row is made of, by name: nats [N]."""
    spread = bound.best_spread()
    found = {
        "elbo": bound.nats(spread),
        "elbo.prior": bound.prior,
        "elbo.steps": bound.steps(spread).sum(1),
        "elbo.reconstruction": bound.reconstruction,
        "elbo.ddpm_variance": bound.nats(),
    }
    return found | ({"ode": costs["ode"]} if "ode" in costs else {})
