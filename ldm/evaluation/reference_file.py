"""A reference as a file: features of images and their moments, with what they were made of, as safetensors.

It is read memory-mapped: features of a million images take no memory but that of a block at a time.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ldm.errors import UserError
from ldm.files import replace
from ldm.metrics.frechet import Moments, moments
from ldm.metrics.precision_recall import radii_of

KIND = "ldm reference"
KEY = "reference"  # of the metadata, which are in no order of their own: one, so that equal files have equal bytes
# What a reference is made of, {name: value}: `data`, fingerprint of the shards; `images`, their number; `image_size`,
# px; `resize`, how pictures came to it; `backbone`, by name, and `weights`, its digest.
Provenance = Mapping[str, str | int]


@dataclass(frozen=True)
class Reference:
    """What samples are compared with: `features` [M, D] of images, None where only their `moments` are known."""

    features: Tensor | None
    moments: Moments
    made_of: Provenance
    _radii: list[Tensor] = field(default_factory=list, repr=False, compare=False)

    def radii(self, device: torch.device | str = "cpu") -> Tensor | None:
        """Those of its features for precision and recall, [M], computed on `device` when they are first asked for."""
        if self.features is not None and not self._radii:
            self._radii.append(radii_of(self.features, device=device))
        return self._radii[0] if self._radii else None


def write_reference(
    path: Path, features: Tensor, made_of: Provenance, whole: bool = True, device: torch.device | str = "cpu"
) -> Reference:
    """Keep features [M, D], float32, maybe memory-mapped, at `path`; the moments alone if not `whole`.

    The moments are computed on `device`. Raises ValueError for features that are not finite.
    """
    known = moments(features, device=device)
    if not (known.mean.isfinite().all() and known.covariance.isfinite().all()):
        raise UserError(f"{path}: features that are not finite; look at the weights of {made_of['backbone']}")
    tensors = {"mean": known.mean, "covariance": known.covariance, **({"features": features} if whole else {})}
    said = json.dumps({"kind": KIND, "count": known.count, "made_of": dict(made_of)})
    replace(path, lambda temporary: save_file(tensors, temporary, {KEY: said}))
    return read_reference(path)


def read_reference(path: Path) -> Reference:
    """The reference at `path`, features memory-mapped. Raises ValueError for a file that is none, or not finite."""
    try:
        with safe_open(path, "pt") as file:
            said = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        kind, made_of, count = said["kind"], said["made_of"], said["count"]
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a reference; scripts/reference.py makes one") from error
    mean, covariance, features = (tensors.get(name) for name in ("mean", "covariance", "features"))
    if (
        kind != KIND or not isinstance(made_of, dict) or not isinstance(count, int)
        or mean is None or covariance is None or mean.ndim != 1 or not len(mean)
        or (mean.dtype, covariance.dtype) != (torch.float64, torch.float64)
        or covariance.shape != (len(mean), len(mean))
        or (features is not None and (features.shape != (count, len(mean)) or features.dtype != torch.float32))
    ):  # fmt: skip
        raise UserError(f"{path}: not a reference; scripts/reference.py makes one")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise UserError(f"{path}: its moments are not finite; make it anew")
    return Reference(features, Moments(mean, covariance, count), made_of)
