"""Samples of a model beside the training images nearest to them, and how often they are copies: memorisation as a job.

Nearest is by the features of a backbone, as in LDM's figures 32 to 34 (there VGG-16's); the measures are of
metrics/nearest.py. Under several processes each makes its share of the samples, and the first one compares.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from rich.progress import Progress
from torch import Tensor

from ldm.build import Parts
from ldm.config import instantiate
from ldm.data.errors import printable
from ldm.data.module import ShardData
from ldm.device import choose
from ldm.drawer import Drawer, check_conditions
from ldm.ensemble_model import Ensemble
from ldm.errors import UserError
from ldm.evaluation.reference import reference
from ldm.evaluation.reference_file import Reference
from ldm.evaluation.table import write_csv
from ldm.files import write_json
from ldm.holding import held
from ldm.images import grid, save_image, to_uint8
from ldm.loading import load_drawer
from ldm.measuring import Ranks, conditions, in_order, in_rounds
from ldm.metrics.features import Features
from ldm.metrics.nearest import authentic, data_copying, nearest
from ldm.model import Model
from ldm.networks.lpips import pretrained_lpips
from ldm.networks.precision import precision_told
from ldm.request import asked_guidance
from ldm.sampling import Sampling
from ldm.training.distributed import process_group, together

Row = dict[str, Any]
FACTS = ("num_samples", "seed", "num_steps", "use_conditions", "data", "held_out", "through_first_stage", "guidance")
SHOWN = 8  # samples of each kind on the sheet
SHOWN_PX = 64  # smaller images are enlarged to about this


def nearest_images(tree: dict[str, Any], words: Sequence[str] = ()) -> tuple[list[Row], Path]:
    """Sample the model of `tree` (conf/nearest.yaml, which `words` made) and look for its samples among its training
    images.

    Returns rows (metric, samples, held_out) and their folder: ``nearest.csv``, ``distances.csv``, ``memorisation.csv``
    and ``.json``, and ``nearest.png``. No rows on ranks but 0; an error of one is raised on all.
    """
    tree = {**tree, "guidance": asked_guidance(words, tree["guidance"])}
    path, device = Path(tree["model"]).expanduser(), choose(tree["device"])
    if min(tree["num_samples"], tree["neighbours"]) < 1:
        raise UserError(f"num_samples={tree['num_samples']}, neighbours={tree['neighbours']}: must be at least 1")
    with process_group(device) as (rank, world_size), ExitStack() as stack:
        if tree["num_samples"] < world_size:
            raise UserError(f"num_samples={tree['num_samples']}: at least {world_size}; each process needs a sample")
        with together():
            model = cast(Model | Ensemble, load_drawer(path, tree["first_stage"], tree["ema"])).to(device)
            model.tuned(tree["compile"], tree["precision"])
            sampling = _sampling(model, tree)
            data = model.data.over(tree["data"], "data") if tree["data"] else model.data
            _check(model, data, sampling, tree)
            own = (path if path.is_dir() else path.parent) / f"nearest-{model.name}"
            folder = Path(tree["out"]) if tree["out"] else own
            if rank == 0:
                stack.enter_context(held(folder, "evaluating into"))
            backbone = instantiate(tree["metric"], Parts(tree), "metric").to(device)
        against = reference(model.data, backbone, device, rank, world_size)
        with together():
            _check_whole(against, model.data)
        *made, numbers = _samples(model, sampling, data, backbone, tree, Ranks(device, rank, world_size))
        images, features = (in_order(rows, numbers) for rows in made)
        if rank:
            return [], folder
        kept_out = _held_out(model, backbone, tree, device)
        known = cast(Reference, against).features
        return _compare(folder, tree, model, (images, features), kept_out, known, backbone, device), folder


def _sampling(model: Drawer, tree: dict[str, Any]) -> Sampling:
    sampling = model.sampling(tree)
    model.left_out(sampling)
    return sampling


def _check(model: Drawer, data: ShardData, sampling: Sampling, tree: dict[str, Any]) -> None:
    """Raises ValueError unless there are images to compare with, and what the model is conditioned on."""
    others = [model.data.over(tree["held_out"], "held_out")] if tree["held_out"] else []
    for each in (data, model.data, *others):
        each.setup()
    if "image" not in model.data.batch_spec:
        raise UserError("data.with_images=false: there are no training images to compare with")
    if tree["neighbours"] > model.data.num_train or model.data.num_train < 2:
        raise UserError(f"neighbours={tree['neighbours']}: there are {model.data.num_train} training images")
    if not tree["held_out"] and not model.data.num_validation:
        raise UserError(f"model={tree['model']}: it has no held-out images; name some with held_out=")
    check_conditions(model, data.batch_spec, sampling)


def _check_whole(known: Reference | None, data: ShardData) -> None:
    """Raises UserError unless there are features, which rank 0 has, of every training image: places are theirs."""
    count = data.num_train if known is None or known.features is None else len(known.features)
    if count != data.num_train:
        raise UserError(
            f"{data.num_train - count} of {data.num_train} training images cannot be read, which "
            "data.max_bad_fraction allows a run, and here not: mend their shards, or leave them out when they are made"
        )


@torch.no_grad()
def _samples(
    model: Drawer, sampling: Sampling, data: ShardData, backbone: Features, tree: dict[str, Any], ranks: Ranks
) -> tuple[Tensor, Tensor, Tensor]:
    """This rank's samples, uint8 [N, 3, H, W], their features [N, D] and their numbers [N]; ranks are in step."""
    images, features, places = [], [], []
    device, rank, world_size = ranks.device, ranks.rank, ranks.world_size
    with Progress(disable=rank != 0) as bars:
        bar = bars.add_task(f"sampling {model.name}", total=tree["num_samples"])
        batches = conditions(data, tree["num_samples"], tree["batch_size"], rank, world_size)
        for (batch, numbers), own in in_rounds(batches, ranks):
            with together():
                if own:
                    batch = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in batch.items()}
                    made = model.generate(sampling, batch, numbers.to(device), tree["seed"])
                    images.append(to_uint8(made).cpu())
                    features.append(backbone(made).cpu())
                    places.append(numbers)
                    bars.advance(bar, len(numbers) * world_size)
    return torch.cat(images), torch.cat(features), torch.cat(places)


@torch.no_grad()
def _held_out(model: Model | Ensemble, backbone: Features, tree: dict[str, Any], device: torch.device) -> Tensor:
    """Features [M, D] of images that were not trained on, as the first stage gives them back or as they are."""
    if tree["held_out"]:
        loader = model.data.over(tree["held_out"], "held_out").statistics_loader(batch_size=tree["batch_size"])
    else:
        loader = model.data.validation_loader(batch_size=tree["batch_size"])
    found = []
    for batch in loader:
        image = batch["image"].to(device)
        if tree["through_first_stage"]:
            image = model.first_stage.decode(model.first_stage.encode(image)).clamp(-1, 1)
        found.append(backbone(image).cpu())
    return torch.cat(found)


def _compare(
    folder: Path, tree: dict[str, Any], model: Drawer, samples: tuple[Tensor, Tensor], held_out: Tensor, known: Tensor,
    backbone: Features, device: torch.device,
) -> list[Row]:  # fmt: skip
    """All that is written, and the rows of the table."""
    images, features = samples
    distances, places = nearest(features, known, tree["neighbours"])
    others, theirs = (found[:, 0] for found in nearest(held_out, known, 1))
    share, z = data_copying(distances[:, 0], others)
    own, kept = (
        authentic(near, at, known).double().mean().item()
        for near, at in ((distances[:, 0], places[:, 0]), (others, theirs))
    )
    medians = [values.median().item() for values in (distances[:, 0], others)]
    rows: list[Row] = [
        {"metric": f"nearer_than_held_out/{backbone.name}", "samples": share, "held_out": 0.5},
        {"metric": f"data_copying_z/{backbone.name}", "samples": z, "held_out": 0.0},
        {"metric": f"authenticity/{backbone.name}", "samples": own, "held_out": kept},
        {"metric": f"nearest_distance/{backbone.name}", "samples": medians[0], "held_out": medians[1]},
    ]
    protocol = {
        "model": model.name,
        "weights": [weights.digest for weights in model.weights],
        "data": model.data.fingerprint,
        "training_images": len(known),
        "held_out_images": len(others),
        **{key: tree[key] for key in FACTS},
        **precision_told(tree["precision"]),
    }
    write_json(folder / "memorisation.json", {"protocol": protocol, "metrics": rows})
    write_csv(folder / "memorisation.csv", rows)
    each = [("sample", n, d) for n, d in enumerate(distances[:, 0].tolist())]
    each += [("held out", n, d) for n, d in enumerate(others.tolist())]
    write_csv(
        folder / "distances.csv",
        [{"of": kind, "number": n, f"distance/{backbone.name}": distance} for kind, n, distance in each],
    )
    write_csv(folder / "nearest.csv", _pairs(images, distances, places, model.data, backbone.name, tree, device))
    _draw(folder / "nearest.png", images, distances[:, 0], places, model.data)
    return rows


@torch.no_grad()
def _pairs(
    images: Tensor, distances: Tensor, places: Tensor, data: ShardData, name: str, tree: dict[str, Any],
    device: torch.device,
) -> list[Row]:  # fmt: skip
    """A row for each sample and each of its neighbours, with their distances as pictures."""
    lpips, rows = pretrained_lpips("alex").to(device), []
    count = places.shape[1]
    pairs = list(enumerate(places.flatten().tolist()))
    for start in range(0, len(pairs), tree["batch_size"]):
        chosen = pairs[start : start + tree["batch_size"]]
        batch = data.statistics_batch([place for _, place in chosen])
        theirs = batch["image"].to(device)
        ours = images[[pair // count for pair, _ in chosen]].to(device).float() / 127.5 - 1
        error = (127.5 * (ours - theirs)).square().flatten(1).mean(1).sqrt().tolist()
        seen = lpips(ours, theirs).tolist() if ours.shape[-1] >= lpips.min_size else [""] * len(chosen)
        for at, (pair, _) in enumerate(chosen):
            sample, order = divmod(pair, count)
            rows.append({
                "sample": sample, "neighbour": order + 1, "index": int(batch["index"][at]),
                "key": printable(batch["key"][at]), f"distance/{name}": distances[sample, order].item(),
                "rmse_grey_levels": error[at], lpips.name: seen[at],
            })  # fmt: skip
    return rows


def _draw(path: Path, images: Tensor, distances: Tensor, places: Tensor, data: ShardData) -> None:
    """The samples nearest to a training image, and below a rule those in the middle: each before its neighbours."""
    order = distances.argsort()
    middle = max(len(order) // 2 - SHOWN // 2, 0)
    sheets = []
    for chosen in (order[:SHOWN], order[middle : middle + SHOWN]):
        own = images[chosen].float() / 127.5 - 1
        theirs = data.statistics_batch(places[chosen].flatten().tolist())["image"]
        left, right = grid(own, columns=1), grid(theirs, columns=places.shape[1])
        sheets.append(torch.cat([left, torch.ones(3, left.shape[1], 8), right], 2))
    rule = torch.ones(3, 12, sheets[0].shape[-1])
    text = {"rows": "a sample, then the training images nearest to it; above the nearest samples, below the median"}
    factor = max(1, SHOWN_PX // images.shape[-1])
    save_image(path, torch.cat([sheets[0], rule, sheets[1]], 1), factor=factor, text=text)
