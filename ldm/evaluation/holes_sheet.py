"""Several answers to each hole (arXiv 2112.10752, figures 11 and 21), as a sheet and in numbers, as a job."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.config import meant
from ldm.data.module import ShardData
from ldm.device import choose
from ldm.drawer import Drawer, check_conditions
from ldm.errors import UserError
from ldm.evaluation.intervals import mean_interval
from ldm.evaluation.paired import METRICS, SMALLEST, Measure
from ldm.evaluation.replaced_fields import with_fields_of
from ldm.evaluation.table import write_csv
from ldm.generate import Ask
from ldm.holding import held
from ldm.images import grid, save_image
from ldm.loading import load_drawer
from ldm.measuring import conditions
from ldm.request import asked_guidance
from ldm.sampling import Sampling

Row = dict[str, Any]
GREY = 0.0  # of a hole on the sheet
LPIPS = "lpips_alex"


@torch.no_grad()
def holes_sheet(tree: dict[str, Any], words: Sequence[str] = ()) -> tuple[Row, Path]:
    """Fill holes with the model of `tree` (conf/holes_sheet.yaml, which `words` made); the table's row and its folder.

    Means over pictures, with 95 % intervals over them: `hole`, the share of the image; where images are large enough
    for LPIPS that of an answer to the picture, that of the hole filled with the mean colour of the rest, and
    `lpips_alex_apart` between two answers; `known_off`, the largest difference outside of holes, in grey levels of 255.
    """
    if tree["num_answers"] < 1:
        raise UserError(f"num_answers={tree['num_answers']}: must be at least 1")
    device, path = choose(tree["device"]), Path(tree["model"]).expanduser()
    model = load_drawer(path, tree["first_stage"], tree["ema"], tree["residency"]).to(device)
    model = model.tuned(tree["compile"], tree["precision"])
    sampling = model.sampling({**tree, "guidance": asked_guidance(words, tree["guidance"])})
    model.left_out(sampling)
    if not {"image", "mask"} <= set().union(*model.conditions(sampling).values()):
        raise UserError(f"model={tree['model']}: fills no holes; it is not conditioned on image and mask")
    data = _pictures(model, tree, sampling)
    check_conditions(model, data.batch_spec, sampling)
    measure = METRICS[LPIPS](device) if model.image_size >= SMALLEST[LPIPS] else None
    folder = Path(tree["out"]) if tree["out"] else (path if path.is_dir() else path.parent) / f"holes-{model.name}"
    rows, columns = [], []
    with held(folder, "evaluating into"):
        for batch, numbers in conditions(data, tree["num_samples"], tree["batch_size"]):
            batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
            each = [numbers.to(device) + answer * tree["num_samples"] for answer in range(tree["num_answers"])]
            asks = [Ask(sampling, dict(batch), own, tree["seed"]) for own in each]
            answers = torch.stack([draw() for draw in model.begun(asks)], dim=1).float()
            image, hole = batch["image"].float(), batch["mask"] >= 0.5
            rows.append(torch.cat([image[:, None], image.where(~hole, GREY)[:, None], answers], dim=1).cpu())
            columns.append(_measured(image, hole, answers, measure))
        save_image(folder / "sheet.png", grid(torch.cat(rows).flatten(0, 1), columns=2 + tree["num_answers"]))
        row = _row({name: torch.cat([part[name] for part in columns]) for name in columns[0]}, tree)
        write_csv(folder / "holes.csv", [row])
    return row, folder


def _pictures(model: Drawer, tree: dict[str, Any], sampling: Sampling) -> ShardData:
    """Held-out images with their holes, as `tree` says, checked."""
    own = model.data
    shards = own.validation if tree["data"] is None else meant("reference", tree["data"])
    if shards is None:
        raise UserError(f"model={tree['model']}: it has no held-out images; name shards with data=")
    data = own.over(shards, "data.validation" if tree["data"] is None else "data")
    data = with_fields_of(tree, data, model, sampling)
    data.setup()
    if data.num_train < tree["num_samples"]:
        raise UserError(f"num_samples={tree['num_samples']}: there are {data.num_train} pictures")
    return data


def _measured(image: Tensor, hole: Tensor, answers: Tensor, measure: Measure | None) -> dict[str, Tensor]:
    """Columns [B] of pictures [B, 3, H, W], holes [B, 1, H, W] and answers [B, A, 3, H, W]."""
    each = answers.unbind(1)
    off = (answers - image[:, None]).abs().where(~hole[:, None], 0).flatten(1).amax(1) * 127.5
    found = {"hole": hole.float().mean((1, 2, 3)), "known_off": off}
    if measure is not None:
        mean = (image * ~hole).sum((2, 3), keepdim=True) / (~hole).sum((2, 3), keepdim=True).clamp(min=1)
        pairs = [(a, b) for place, a in enumerate(each) for b in each[:place]]
        found[LPIPS] = torch.stack([measure(answer, image) for answer in each]).mean(0)
        found[f"{LPIPS}_mean_colour"] = measure(image.where(~hole, mean), image)
        if pairs:
            found[f"{LPIPS}_apart"] = torch.stack([measure(a, b) for a, b in pairs]).mean(0)
    return {name: value.cpu().double() for name, value in found.items()}


def _row(columns: dict[str, Tensor], tree: dict[str, Any]) -> Row:
    row: Row = {"samples": tree["num_samples"], "answers": tree["num_answers"]}
    row["known_off"] = columns.pop("known_off").max().item()
    for name, values in columns.items():
        row[name] = values.mean().item()
        if tree["resamples"] and len(values) > 1:
            row |= mean_interval(name, values, tree["resamples"], tree["seed"])
    return row
