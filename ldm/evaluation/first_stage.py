"""How well a first stage reconstructs held-out images: the columns of table 8 (arXiv 2112.10752), with their protocol.

rFID, PSNR, PSIM (LPIPS-VGG), SSIM and Inception score of the reconstructions, over any number of processes; what is
called rFID and IS there needs Inception as `metric`, and bears the backbone's name here.
"""

from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from ldm.build import Parts, load_autoencoder
from ldm.config import instantiate
from ldm.data.errors import printable
from ldm.data.module import ShardData
from ldm.device import choose
from ldm.errors import UserError
from ldm.evaluation.reference import seen_as
from ldm.evaluation.table import write_csv
from ldm.files import write_json
from ldm.first_stage.first_stage import reconstruct
from ldm.generate import check_size
from ldm.images import grid, save_image
from ldm.metrics.features import FeatureBank, Features
from ldm.metrics.reconstruction_quality import Reconstructions, reconstruction_quality
from ldm.networks.lpips import pretrained_lpips
from ldm.training.distributed import process_group

Row = dict[str, Any]
SHOWN = 8  # images of each kind in the picture


def evaluate_first_stage(tree: dict[str, Any]) -> tuple[list[Row], Path]:
    """Measure the first stage of `tree` (conf/evaluate.yaml) on up to `num_samples` of its validation images.

    Returns rows (metric, value, std over images) and their folder, where ``first_stage.json`` and
    ``first_stage.csv`` hold them and ``reconstructions.png`` shows the worst and the median images.
    """
    device = choose(tree["device"])
    path = Path(tree["model"])
    parts, found = load_autoencoder(path, tree["ema"])
    data, count = validation_of(parts, tree, path)
    folder = Path(tree["out"]) if tree["out"] else found.run / "evaluation"
    autoencoder, regularizer = parts["autoencoder"].to(device), parts["regularizer"].to(device)
    backbone = instantiate(tree["metric"], Parts(tree), "metric").to(device)
    alex, vgg = (pretrained_lpips(net).to(device) for net in ("alex", "vgg"))
    with process_group(device) as (rank, world_size), torch.no_grad():
        looking, bank = Reconstructions(backbone, {alex.name: alex, "psim": vgg}), FeatureBank().to(device)
        with Progress(disable=rank != 0) as progress:
            bar = progress.add_task(f"reconstructing with {found.run.name}", total=count)
            for batch in data.validation_loader(rank, world_size, tree["batch_size"], count):
                image = batch["image"].to(device)
                output = reconstruct(autoencoder, regularizer, image)
                _check_finite(output, batch["key"], found.run)
                bank.update(looking.look_at(image, output), batch["index"].to(device))
                progress.advance(bar, world_size * len(image))
        rows, numbers = bank.compute()
        if rank:
            return [], folder
    every = looking.found(rows)
    quality = reconstruction_quality(every, backbone.cpu(), tree["seed"])
    table = [
        {"metric": name, "value": one.value, **({} if one.std is None else {"std": one.std})}
        for name, one in quality.items()
    ]
    _write(folder, table, tree, found, data, backbone, len(numbers), world_size)
    order = numbers.cpu()[every.errors["psim"].argsort(descending=True)].tolist()
    middle = max(len(order) // 2 - SHOWN // 2, 0)
    _draw(folder, [order[:SHOWN], order[middle : middle + SHOWN]], data, autoencoder, regularizer, device)
    return table, folder


def validation_of(parts: Parts, tree: dict[str, Any], path: Path) -> tuple[ShardData, int]:
    """The data of a first stage, perhaps other validation shards or their images at another size, and how many of them
    are measured.

    Raises ValueError if there are too few, and for a size that the autoencoder does not take.
    """
    size = tree.get("image_size")
    if size is not None:
        check_size(size, size, parts["autoencoder"].f)
        parts.tree |= {"image_size": size, "crop_size": None}
    if tree.get("validation"):
        own = parts.tree["data"]
        own |= {"validation": tree["validation"], "validation_samples": None}
        own["train"] = tree["validation"] if own["train"] == "???" else own["train"]
    data = parts["data"]
    data.setup()
    count = min(tree["num_samples"], data.num_validation)
    if count < 2:
        raise UserError(
            f"model={path}: {count} validation images are measured; name more with validation=, num_samples="
        )
    return data, count


def _check_finite(output: Tensor, keys: list[str], run: Path) -> None:
    finite = output.isfinite().flatten(1).all(1).tolist()
    for key in [key for key, whole in zip(keys, finite, strict=True) if not whole]:
        raise UserError(f"model={run}: its reconstruction of {printable(key)} is not finite; look at its weights")


def _write(
    folder: Path, rows: list[Row], tree: dict[str, Any], found: Any, data: Any, backbone: Features, count: int,
    world_size: int,
) -> None:  # fmt: skip
    seen = seen_as(data, backbone)
    protocol = {
        "model": found.run.name,
        "weights": found.digest,
        "images": count,
        "data": data.fingerprint,
        "image_size": seen["image_size"],
        "resize": seen["resize"],
        "backbone": backbone.name,
        "psim": "LPIPS-VGG v0.1",
        "latent": "the mode of the posterior for KL, the nearest code for VQ",
        "processes": world_size,
    }
    write_json(folder / "first_stage.json", {"protocol": protocol, "metrics": rows})
    write_csv(folder / "first_stage.csv", rows)


def _draw(
    folder: Path, chosen: list[list[int]], data: Any, autoencoder: Any, regularizer: Any, device: torch.device
) -> None:
    """Two rows for each kind: the images, and below them their reconstructions."""
    sheets = []
    for indices in chosen:
        image = data.validation_batch(indices)["image"]
        with torch.no_grad():
            output = reconstruct(autoencoder, regularizer, image.to(device)).cpu()
        sheets.append(grid(torch.cat([image, output]), columns=len(image)))
    rule = torch.ones(3, 12, sheets[0].shape[-1])
    save_image(
        folder / "reconstructions.png",
        torch.cat([sheets[0], rule, sheets[1]], 1),
        text={"rows": "worst by PSIM: images, reconstructions; median by PSIM: images, reconstructions"},
    )
