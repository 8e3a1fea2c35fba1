"""What models cost: device-days of training, images a second, parameters, as table 18 of arXiv 2112.10752 has them."""

from pathlib import Path
from typing import Any

from ldm.build import load_autoencoder
from ldm.checkpoint import weights
from ldm.device import choose
from ldm.errors import UserError
from ldm.evaluation.table import write_csv
from ldm.evaluation.throughput import samples_per_second
from ldm.files import read_json
from ldm.lineage import begun_from, read_lineage
from ldm.model import Model, load_model
from ldm.places import first_stage_of

Row = dict[str, Any]
# Of table 18: (V100-days, images a second on an A100). One of those is worth 2.2 V100s there.
TABLE_18 = {
    "LDM-8 LSUN-Churches": (18, 6.80),
    "LDM-4 LSUN-Bedrooms": (60, 1.07),
    "LDM-4 CelebA-HQ": (14.4, 0.43),
    "LDM-4 FFHQ": (26, 1.07),
    "LDM-8 ImageNet": (79, 1.9),
    "LDM-8-G ImageNet (12 of them its classifier)": (91, 1.93),
    "LDM-4 ImageNet": (271, 0.7),
    "LDM-4-G ImageNet": (271, 0.4),
    "VQ first stage, f = 4": (29, None),
    "VQ first stage, f = 8": (66, None),
}


def costs(tree: dict[str, Any]) -> tuple[list[Row], Path]:
    """A row for each of `models` of `tree` (conf/cost_table.yaml), with the paper's below; and the CSV they are in.

    Days are null where a run's lineage does not tell them, as those of imported weights. Raises ValueError for what is
    no diffusion model's run, before anything is drawn.
    """
    paths = [tree["models"]] if isinstance(tree["models"], str) else tree["models"]
    if not paths:
        raise UserError("models=[]: name at least one run, models=[runs/a,runs/b]")
    if tree["batch_size"] < 1:
        raise UserError(f"batch_size={tree['batch_size']}: must be at least 1")
    v100s = tree["v100s"]
    if v100s is not None and not 0 < v100s < float("inf"):
        raise UserError(f"v100s={v100s}: must be positive; an A100 is worth 2.2")
    models = [load_model(Path(path).expanduser()) for path in paths]
    for model in models:
        model.data.setup()
    rows = [_row(model, tree) for model in models]
    if tree["published"]:
        empty = dict.fromkeys(rows[0])
        own = {name: {"v100_days": days, "samples_per_second": rate} for name, (days, rate) in TABLE_18.items()}
        rows += [{**empty, "model": f"table 18: {name}", **row} for name, row in own.items()]
    return rows, write_csv(Path(tree["out"]) / "cost_table.csv", rows)


def _row(model: Model, tree: dict[str, Any]) -> Row:
    device, run = choose(tree["device"]), model.weights[0].run
    asked = {"sampler": None, "sigmas": None, "guidance": None}
    short, sampling = model.sampling({**asked, "num_steps": 2}), model.sampling(asked)
    rate = samples_per_second(model.to(device).tuned(), short, sampling, tree["batch_size"], device)
    model.to("cpu")  # the next one has the device alone
    first_stage = first_stage_of(run)
    own, stage = _device_days(model.weights[0].path), _device_days(Path(first_stage)) if first_stage else None
    return {
        "model": model.name,
        "parameters_m": _millions(model.denoiser),
        "conditioner_m": _millions(model.conditioner),
        "first_stage_m": _millions(load_autoencoder(Path(first_stage))[0]["autoencoder"]) if first_stage else 0.0,
        "first_stage_days": stage,
        "device_days": own,
        "v100_days": None if own is None or tree["v100s"] is None else own * tree["v100s"],
        "image_size": model.image_size,
        "num_steps": len(sampling.sigmas) - 1,
        "device": str(device),
        "samples_per_second": rate,
    }


def _device_days(path: Path) -> float | None:
    """Of the training up to these weights, a run's newest, and of the runs that it was branched from up to where it
    began; None if one does not tell.
    """
    own = path.suffix == ".safetensors"
    run = path.parent.parent if own else path
    described = path.with_name(f"{path.name.partition('.')[0]}.json") if own else weights.newest(run)
    lineage, hours = read_lineage(run, "none"), weights.describe(described).get("device_hours")
    if "imported" in lineage or hours is None:
        return None
    while lineage["parent"]:
        checkpoint = begun_from(lineage, run)
        if checkpoint is None or not (checkpoint / "state.json").exists():
            return None
        run = checkpoint.parent.parent
        lineage = read_lineage(run, "none")
        if "imported" in lineage:
            return None
        hours += read_json(checkpoint / "state.json")["device_hours"]
    return hours / 24


def _millions(module: Any) -> float:
    return round(sum(p.numel() for p in module.parameters()) / 1e6, 2)
