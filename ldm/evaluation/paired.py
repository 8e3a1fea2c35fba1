"""Measures of samples against the true picture of each, for what has one: super-resolution, inpainting, colours.

And of those samples alone that a fact of their condition selects, such as the share of the image that a hole covers.
Beside them stands what the first stage makes of the true pictures: no model on its latents can do better.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.evaluation.intervals import mean_interval
from ldm.metrics.features import Features
from ldm.metrics.frechet import frechet_distance, moments
from ldm.metrics.reconstruction import l1, psnr, ssim
from ldm.networks.lpips import TRUNKS, pretrained_lpips

Measure = Callable[[Tensor, Tensor], Tensor]
# Their names and what makes each on a device; the smallest side, px, of what they compare where there is one.
METRICS: dict[str, Callable[[torch.device], Measure]] = {
    "psnr": lambda device: psnr,
    "ssim": lambda device: ssim,
    "l1": lambda device: l1,
    "lpips_alex": lambda device: pretrained_lpips("alex").to(device),
    "lpips_vgg": lambda device: pretrained_lpips("vgg").to(device),
}
SMALLEST = {"ssim": 11, **{f"lpips_{net}": trunk[-1] for net, trunk in TRUNKS.items()}}
TRUTH = "truth"  # the column of the true pictures' features
CEILING = "_first_stage"  # what the names of measures of the first stage's reconstructions end in


class Subset(TypedDict):
    """Samples whose `field` of the batch has a mean in [low, high)."""

    field: str
    low: float
    high: float


class Paired:
    """Each of `metrics`, of the names in `METRICS`, over all samples and over each of `subsets` {name: Subset}.

    Of a subset the Frechet distance is against its own true pictures, whatever all samples are compared with.
    """

    def __init__(self, metrics: Sequence[str], subsets: Mapping[str, Subset], device: torch.device):
        self.metrics = {name: METRICS[name](device) for name in metrics}
        self.subsets = subsets

    @torch.no_grad()
    def __call__(
        self, images: Tensor, batch: Mapping[str, Any], backbone: Features, first_stage: nn.Module
    ) -> dict[str, Tensor]:
        """Columns [B, 1] of images [B, 3, H, W] in [-1, 1] whose truth is `image` of the batch, [B, D] of features.

        Where the `first_stage` reduces, also of the truth through it, a KL's by the mode.
        """
        truth = batch["image"].float()
        found = {name: metric(images, truth)[:, None] for name, metric in self.metrics.items()}
        if self.metrics and first_stage.spec.f > 1:
            again = first_stage.decode(first_stage.encode(truth)).clamp(-1, 1)
            found |= {f"{name}{CEILING}": metric(again, truth)[:, None] for name, metric in self.metrics.items()}
        for subset in self.subsets.values():
            found[subset["field"]] = batch[subset["field"]].float().flatten(1).mean(1, keepdim=True)
        return {**found, TRUTH: backbone(truth)} if self.subsets else found

    def table(
        self, columns: Mapping[str, Tensor], features: Tensor, backbone: Features, resamples: int, seed: int
    ) -> dict[str, float]:
        """Means of the columns [N, ...] that calls gave, with their intervals, and of each subset with its count.

        A subset of too few samples has NaN in the place of what these do not tell.
        """
        found = self._means(columns, "", resamples, seed)
        if any(name.endswith(CEILING) for name in columns):
            ceiling = {name: columns[f"{name}{CEILING}"] for name in self.metrics}
            found |= self._means(ceiling, CEILING, resamples, seed)
        for name, subset in self.subsets.items():
            value = columns[subset["field"]][:, 0]
            inside = (value >= subset["low"]) & (value < subset["high"])
            count = int(inside.sum())
            real, fake = columns[TRUTH][inside], features[inside]
            distance = frechet_distance(moments(real), moments(fake)) if count > 1 else float("nan")
            found |= {f"samples_{name}": count, f"{backbone.frechet}_{name}/{backbone.name}": distance}
            own = {column: columns[column][inside] for column in self.metrics}
            found |= self._means(own, f"_{name}", resamples, seed)
        return found

    def _means(self, columns: Mapping[str, Tensor], end: str, resamples: int, seed: int) -> dict[str, float]:
        found: dict[str, float] = {}
        for name in self.metrics:
            values, key = columns[name][:, 0], f"{name}{end}"
            found[key] = values.double().mean().item() if len(values) else float("nan")
            if resamples and len(values):
                found |= mean_interval(key, values, resamples, seed)
            elif resamples:
                found |= dict.fromkeys((f"{key}_low", f"{key}_high"), float("nan"))
        return found


def by_subset(row: Mapping[str, Any], subsets: Collection[str]) -> list[dict[str, Any]]:
    """What a `row` of a table has of each subset, as a row of its own under the names that all samples have there."""
    return [{"subset": name, **_of_subset(row, name)} for name in subsets]


def _of_subset(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = {}
    for key, value in row.items():
        metric, slash, backbone = key.partition("/")
        for end in ("", "_low", "_high"):
            if metric.endswith(f"_{name}{end}"):
                found[f"{metric.removesuffix(f'_{name}{end}')}{end}{slash}{backbone}"] = value
    return found


def check_paired(metrics: Sequence[str], subsets: Mapping[str, Subset], batch: Mapping[str, str], side: int) -> None:
    """Raises ValueError for a measure that does not exist, or that a `batch` of images of this side, px, has not."""
    for name in metrics:
        if name not in METRICS:
            raise UserError(f"paired: no measure {name}; there are {', '.join(METRICS)}")
        if side < SMALLEST.get(name, 1):
            raise UserError(f"paired: {name} compares images of {SMALLEST[name]} px or more a side, these have {side}")
    if metrics and "image" not in batch:
        raise UserError("paired: data.with_images=false, so that there is no true picture to compare with")
    for subset in subsets.values():
        if subset["field"] not in batch:
            raise UserError(f"protocol.subsets: {subset['field']!r} is no field of the data")
