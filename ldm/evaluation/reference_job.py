"""What scripts/reference.py does: look at images through a backbone, and keep what samples are compared with."""

from pathlib import Path
from typing import Any

from ldm.asked import check_reference
from ldm.build import Parts
from ldm.config import instantiate
from ldm.data.module import ShardData
from ldm.device import choose
from ldm.errors import UserError
from ldm.evaluation.reference import make_reference, provenance
from ldm.evaluation.reference_file import Reference, read_reference
from ldm.loading import load_drawer
from ldm.training.distributed import broadcast, process_group, together


def make(tree: dict[str, Any]) -> tuple[Path, Reference | None]:
    """The reference of `tree` (conf/reference.yaml), as it lies in its file; on ranks but 0 only the path.

    Raises ValueError for a file that is there already and is not of these images, this backbone and this size.
    """
    check_reference(tree)
    path, device = Path(tree["out"]).expanduser(), choose(tree["device"])
    with process_group(device) as (rank, world_size):
        with together():
            data = _data(tree)
            data.setup()
            if "image" not in data.batch_spec:
                raise UserError("data.with_images=false: there are no images to look at")
            if data.num_train < 2:
                raise UserError(f"shards: a covariance needs at least 2 images, there are {data.num_train}")
            backbone = instantiate(tree["metric"], Parts(tree), "metric").to(device)
            made_of = provenance(data, backbone)
            known = _known(path, made_of) if rank == 0 else None
        if broadcast(known is not None):
            return path, known
        batches = data.statistics_loader(rank, world_size, tree["batch_size"])
        return path, make_reference(path, made_of, batches, backbone, device, rank, tree["features"])


def _data(tree: dict[str, Any]) -> ShardData:
    """The images that are looked at."""
    if tree["model"] is None:
        kept, workers = tree["max_samples"], tree["num_workers"]
        return ShardData(tree["shards"], tree["image_size"], tree["batch_size"], num_workers=workers, max_samples=kept)
    data = load_drawer(tree["model"]).data
    data = data if tree["shards"] is None else data.over(tree["shards"], "shards")
    if tree["max_samples"] is not None:
        data.max_samples = tree["max_samples"]
    return data


def _known(path: Path, made_of: Any) -> Reference | None:
    if not path.exists():
        return None
    known = read_reference(path)
    if known.made_of != made_of:
        raise UserError(f"out={path}: there is another reference; remove it, or give another name")
    return known
