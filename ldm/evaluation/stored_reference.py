"""A reference that is given as a file: one of scripts/reference.py, or an .npz as ADM publishes them.

An .npz has the moments `mu`, `sigma` of Inception's features, images `arr_0`, or both: KID, precision and recall then
come from the images, and FID from the moments, as in ADM's evaluator. The spatial moments `mu_s`, `sigma_s` are not
used.
"""

import hashlib
import logging
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.data.module import ShardData
from ldm.data.paths import expand
from ldm.data.shards import ShardSet
from ldm.errors import UserError
from ldm.evaluation.npz import Npz
from ldm.evaluation.reference import cached, reference, seen_as
from ldm.evaluation.reference_file import Reference, read_reference
from ldm.files import sha256
from ldm.metrics.features import Features
from ldm.metrics.frechet import Moments
from ldm.training.distributed import together

SUFFIXES = (".safetensors", ".npz")
PUBLISHED = "inception_v3"  # the backbone of published moments
UNKNOWN = sys.maxsize  # of the images behind published moments, which do not say: more than there are dimensions
BATCH = 100
log = logging.getLogger(__name__)


def is_stored(given: Any) -> bool:
    """Whether `reference=` names such a file, and not shards."""
    return isinstance(given, str) and given.endswith(SUFFIXES)


def stored(given: str, like: ShardData) -> "StoredReference":
    """The reference in the file `given`, for samples of a model that was trained on `like`."""
    return StoredReference(Path(given).expanduser(), like)


def facts_of(given: Any) -> dict[str, str]:
    """What measured points depend on in the content of a file, or of shards; nothing where none are named. Raises
    ValueError for what is not there.
    """
    if given is None:
        return {}
    if not is_stored(given):
        return {"reference_content": content_of(given, "reference")}
    path = Path(given).expanduser()
    _check_there(path)
    return {"reference_content": _digest(path, path.stat().st_mtime_ns, path.stat().st_size)}


def content_of(shards: str | list[str], key: str) -> str:
    """What tells the shards that `key` names from others, wherever they lie. Raises ValueError for none."""
    return ShardSet.open(expand(shards, key)).fingerprint()


class StoredReference:
    """In the place of the images that samples are compared with; `setup` and what follows ask no network."""

    def __init__(self, path: Path, like: ShardData):
        self.path, self.like = path, like
        self.fields: dict[str, Any] = {}
        self.framing, self.decoder = like.framing, like.decoder  # how what it is compared with is read
        self.image_size = like.framing.window
        self.num_train = 0  # images, once it is set up
        self.batch_spec: dict[str, str] = {}

    @property
    def fingerprint(self) -> str:
        """What tells it from others."""
        return facts_of(str(self.path))["reference_content"]

    def setup(self) -> None:
        """Read what the file says of itself. Raises ValueError or OSError for one that cannot be used."""
        _check_there(self.path)
        self.num_train = _count_of_npz(self) if self.path.suffix == ".npz" else read_reference(self.path).moments.count
        self.batch_spec = {"image": f"float32 [B, 3, {self.image_size}, {self.image_size}]"}

    def mismatch(self, key: str, theirs: object, own: object) -> UserError:
        """The error that names both sides."""
        return UserError(
            f"reference={self.path}: its {key} is {theirs}, that of this evaluation {own}; what differs cannot be "
            "compared: choose another reference, or metric"
        )


@reference.register
def _read(
    data: StoredReference, backbone: Features, device: torch.device, rank: int = 0, world_size: int = 1
) -> Reference | None:
    """The reference in a file. Raises ValueError, on all ranks, if it does not go with the evaluation."""
    if data.path.suffix == ".npz":
        found = _of_npz(data, backbone, device, rank, world_size)
    else:
        with together():
            found = read_reference(data.path)
            for key, own in seen_as(data.like, backbone).items():
                if found.made_of.get(key) != own:
                    raise data.mismatch(key, found.made_of.get(key), own)
    if rank:
        return None
    if found.features is None:
        log.warning("reference=%s: has moments alone; KID, precision and recall are left out", data.path)
    return found


def _of_npz(
    data: StoredReference, backbone: Features, device: torch.device, rank: int, world_size: int
) -> Reference | None:
    npz, own, published = Npz(data.path), None, None
    if {"mu", "sigma"} <= set(npz.names):
        with together():
            if backbone.name != PUBLISHED:
                raise data.mismatch("backbone", f"{PUBLISHED} (mu, sigma)", backbone.name)
            published = _published(npz, backbone.dim)
    if "arr_0" in npz.names:
        made_of = {**seen_as(data.like, backbone), "data": sha256(data.path), "resize": "as it lies in the .npz"}
        own = cached(made_of, partial(_images, npz, rank, world_size), backbone, device, rank)
    if rank:
        return None
    if own is None:
        return Reference(None, published, {})
    return Reference(own.features, own.moments if published is None else published, own.made_of)


def _published(npz: Npz, dim: int) -> Moments:
    mean, covariance = npz.floats("mu"), npz.floats("sigma")
    if mean.shape != (dim,) or covariance.shape != (dim, dim):
        raise UserError(
            f"{npz.path}: mu {list(mean.shape)} and sigma {list(covariance.shape)}, expected {dim} features"
        )
    return Moments(mean, covariance, UNKNOWN)


def _images(npz: Npz, rank: int, world_size: int) -> Iterator[dict[str, Tensor | list[str]]]:
    """This rank's share of the images, every so many-th."""
    for number, images in enumerate(npz.images("arr_0", BATCH)):
        places = torch.arange(len(images)) + number * BATCH
        own = places % world_size == rank
        if own.any():
            yield {"image": images[own], "key": [f"image {place} of arr_0" for place in places[own].tolist()]}


def _count_of_npz(data: StoredReference) -> int:
    """How many images, or as many as moments are of, which is not known."""
    npz = Npz(data.path)
    if "arr_0" in npz.names:
        shape = npz.shape("arr_0")
        if len(shape) != 4 or shape[3] != 3:
            raise UserError(f"reference={data.path}: arr_0 is {list(shape)}, expected uint8 [N, H, W, 3]")
        if shape[1:3] != (data.image_size, data.image_size):
            size = f"{data.image_size} x {data.image_size} px"
            raise data.mismatch("image size", f"{shape[2]} x {shape[1]} px", size)
        return shape[0]
    if not {"mu", "sigma"} <= set(npz.names):
        raise UserError(
            f"reference={data.path}: has neither mu and sigma nor arr_0, but {', '.join(npz.names) or 'nothing'}"
        )
    return UNKNOWN


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"reference={path}: there is no such file")


@cache
def _digest(path: Path, modified: int, size: int) -> str:
    """Of what a file holds: of features their moments stand for them, which are a thousandth of them."""
    if path.suffix == ".npz":
        return sha256(path)
    found = read_reference(path)
    parts = (found.moments.mean, found.moments.covariance)
    values = b"".join(part.numpy().tobytes() for part in parts)
    return hashlib.sha256(values + repr((sorted(found.made_of.items()), found.features is None)).encode()).hexdigest()
