"""What samples are compared with: features of the training images, or of others; computed once for each set of them.

They are kept in the user's cache, so that every model and every scale is measured against the same numbers.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial, singledispatch
from pathlib import Path
from typing import Any

import torch

from ldm.data.errors import printable
from ldm.data.module import ShardData
from ldm.errors import UserError
from ldm.evaluation.reference_file import Provenance, Reference, read_reference, write_reference
from ldm.measuring import Ranks, in_rounds
from ldm.metrics.features import Features
from ldm.networks.downloads import cache_folder
from ldm.spool import Spool, merged
from ldm.training.distributed import broadcast, together

Batches = Iterable[Mapping[str, Any]]
log = logging.getLogger(__name__)


@singledispatch
def reference(
    data: Any, backbone: Features, device: torch.device, rank: int = 0, world_size: int = 1
) -> Reference | None:
    """The reference of `data`, a ShardData, under `backbone`, from the cache if it is there.

    Of other kinds of `data` it is what is registered for them. Ranks, which call this together, look at a share of the
    images each; only 0 has it, and writes the cache.
    """
    if rank == 0:
        _forget(data, backbone)
    batches = partial(data.statistics_loader, rank, world_size, 100)
    return cached(provenance(data, backbone), batches, backbone, device, rank)


def cached(
    made_of: Provenance, batches: Callable[[], Batches], backbone: Features, device: torch.device, rank: int
) -> Reference | None:
    """The reference of these facts as the cache has it, or made of this rank's `batches` as by `make_reference`."""
    facts = json.dumps(dict(made_of), sort_keys=True)
    path = cache_folder() / "features" / f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}.safetensors"
    kept = _kept(path, made_of) if rank == 0 else None
    if broadcast(kept is not None):
        return kept
    return make_reference(path, made_of, batches(), backbone, device, rank)


def make_reference(
    path: Path, made_of: Provenance, batches: Batches, backbone: Features, device: torch.device, rank: int = 0,
    whole: bool = True,
) -> Reference | None:  # fmt: skip
    """Look at images, each rank at its `batches` of image and key, every so many-th of all, and keep what is found at
    `path`, the moments alone if not `whole`. Only rank 0 has it.

    Raises ValueError naming an image whose features are not finite.
    """
    with together():
        spool = Spool(path.absolute().parent)
    for batch, own in in_rounds(batches, Ranks(device, rank)):
        with together():
            if not own:
                continue
            rows = backbone(batch["image"].to(device)).float()
            for place in (~rows.isfinite().all(1)).nonzero().flatten().tolist():
                raise UserError(
                    f"the features of {printable(batch['key'][place])} under {backbone.name} are not finite; look at "
                    "the weights of metric="
                )
            spool.add(rows)
    every = merged(spool)
    with together():
        found = write_reference(path, every.whole(), made_of, whole, device) if rank == 0 else None
    return found


def provenance(data: ShardData, backbone: Features) -> Provenance:
    """What a reference of `data` under `backbone` depends on; see reference_file."""
    return {"data": data.fingerprint, "images": data.num_train, **seen_as(data, backbone)}


def seen_as(data: ShardData, backbone: Features) -> Provenance:
    """Of that, what is the same for all images that are read as `data` are."""
    framing, share = data.framing, data.framing.plain.share
    crop = "" if share is None else f" of {share:g} of it"
    words = (
        f"short side to {framing.short_side} px, centre crop{crop}, {framing.window} px, decoder {data.decoder.name}"
    )
    return {"image_size": framing.window, "resize": words, "backbone": backbone.name, "weights": backbone.digest}


def _kept(path: Path, made_of: Provenance) -> Reference | None:
    """What the cache has, if it can be used; where it cannot, that is said."""
    if not path.exists():
        return None
    try:
        kept = read_reference(path)
    except ValueError as error:
        log.warning("%s (it is made anew)", error)
        return None
    return kept if kept.made_of == made_of and kept.features is not None else None


def _forget(data: ShardData, backbone: Features) -> None:
    """Remove what an earlier version kept of the same images, which does not say with which weights it was made."""
    facts = f"{data.fingerprint}/{data.num_train}/{data.image_size}/{backbone.name}"
    old = cache_folder() / "features" / f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}.safetensors"
    if old.exists():
        log.warning("%s: of an earlier version, does not say with which weights it was made; it is made anew", old)
        old.unlink()
