"""What judges of all tasks use: trained models, held-out images, samples drawn from files, numbers with intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.api import Pipeline, open_model
from ldm.build import Parts
from ldm.config import instantiate
from ldm.data.module import ShardData
from ldm.device import choose
from ldm.evaluation.intervals import mean_interval, set_intervals
from ldm.evaluation.table import ends
from ldm.metrics.features import Features
from ldm.metrics.quality import sample_quality
from ldm.networks.lpips import LPIPS, pretrained_lpips
from ldm.tasks.trainings import Part, Places

Row = dict[str, Any]
Batch = dict[str, Any]
FILES = 100  # samples at most that are drawn each from a file of its own


@dataclass(frozen=True)
class Judgement:
    """Rows (quantity, value, low, high, num), and a contact sheet [3, H, W] in [-1, 1] with what it shows."""

    rows: list[Row]
    sheet: Tensor
    caption: str
    enlarge: int = 2


@dataclass
class Bench:
    """The judge's place for one part of a report under `tree`; files that are sampled from lie in `folder`."""

    tree: dict[str, Any]
    part: Part
    folder: Path
    rows: list[Row] = field(default_factory=list)

    @cached_property
    def device(self) -> torch.device:
        return choose(self.tree["device"])

    @cached_property
    def backbone(self) -> Features:
        """What sets of images are compared by."""
        return instantiate(self.tree["metric"], Parts(self.tree), "metric").to(self.device)

    @cached_property
    def lpips(self) -> LPIPS:
        return pretrained_lpips("alex").to(self.device)

    def run(self, training: str) -> Path:
        """The run of a training of this part's seed."""
        return Places(self.tree).run(training, self.part.seed)

    def model(self, training: str) -> Pipeline:
        """A trained model, as ldm.load gives it."""
        return open_model(self.run(training), None, "ema", self.tree["device"], False, None)

    def count(self, least: int = 10, most: int | None = None) -> int:
        """How many samples a number is of: num_samples, between these."""
        return max(least, min(self.tree["num_samples"], most or self.tree["num_samples"]))

    def held_out(self, data: ShardData, count: int | None = None) -> Batch:
        """The first `count` held-out samples of a model's data as one batch."""
        data.setup()
        return joined(data.validation_loader(batch_size=self.tree["batch_size"], num_samples=count))

    def training(self, data: ShardData, count: int | None = None) -> Batch:
        """So many training samples of a fixed random order as one batch."""
        data.setup()
        return joined(data.statistics_loader(batch_size=self.tree["batch_size"], num_samples=count))

    def sample(self, model: Pipeline, given: Sequence[Mapping[str, Any]], seed: int = 0, **options: Any) -> Tensor:
        """One image [3, H, W] for each of `given`, options of sample.py, stacked; image i is drawn with seed + i.

        So the same place has the same noise whatever it is given.
        """
        own = [model.sample(**{**options, **keys}, seed=seed + place, num_images=1) for place, keys in enumerate(given)]
        return torch.cat([images.tensor for images in own])

    @torch.no_grad()
    def reconstructed(self, model: Pipeline, images: Tensor) -> Tensor:
        """Images as the model's first stage gives them back: what no sample of it can be better than."""
        return in_batches(lambda x: model.first_stage.decode(model.first_stage.encode(x)).clamp(-1, 1), images, self)

    def features(self, images: Tensor) -> Tensor:
        """What the backbone makes of images."""
        return in_batches(self.backbone, images, self)

    def lpips_of(self, images: Tensor, target: Tensor) -> Tensor:
        """LPIPS-AlexNet [N] of images."""
        return in_batches(self.lpips, images, self, target)

    # -- numbers -------------------------------------------------------------------------------------------------

    def add_mean(self, quantity: str, values: Tensor) -> None:
        """The mean of `values` [N], one a sample, with its interval."""
        values = values.double().cpu()
        found = mean_interval("x", values, self.tree["resamples"], 0)
        low, high = (found[key] for key in ends("x"))
        self._add(quantity, values.mean().item(), low, high, len(values))

    def add_statistic(self, quantity: str, values: Tensor, statistic: Callable[[Tensor], Tensor]) -> None:
        """A `statistic` of rows `values` [N, ...] with the interval of its bootstrap over them."""
        generator, count = torch.Generator().manual_seed(0), len(values)
        draws = [torch.randint(count, (count,), generator=generator) for _ in range(self.tree["resamples"])]
        again = torch.stack([statistic(values[draw]).double() for draw in draws])
        low, high = torch.quantile(again, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        self._add(quantity, float(statistic(values)), low, high, count)

    def add_set(self, quantity: str, real: Tensor, images: Tensor, only: Sequence[str] = ("kid",)) -> None:
        """KID and other distances of images to features `real` [M, D]; `quantity` names the images."""
        fake = self.features(images)
        table = sample_quality(real, fake, self.backbone, torch.Generator().manual_seed(0))
        table = {key: value for key, value in table.items() if key.partition("/")[0] in only}
        found = set_intervals(table, real, fake, self.backbone, self.tree["resamples"], 0)
        for key, value in table.items():
            low, high = (found[end] for end in ends(key))
            self._add(f"{key}, {quantity}", value, low, high, len(images))

    def _add(self, quantity: str, value: float, low: float, high: float, num: int) -> None:
        self.rows.append({"quantity": quantity, "value": value, "low": low, "high": high, "num": num})


def joined(batches: Any) -> Batch:
    """Batches as one: tensors stacked, lists one after the other."""
    found: dict[str, list[Any]] = {}
    for batch in batches:
        for name, value in batch.items():
            found.setdefault(name, []).append(value)
    return {
        name: torch.cat(values) if isinstance(values[0], Tensor) else [item for value in values for item in value]
        for name, values in found.items()
        if isinstance(values[0], Tensor | list)
    }


@torch.no_grad()
def in_batches(function: Callable[..., Tensor], images: Tensor, bench: Bench, *more: Tensor) -> Tensor:
    """function(images, *more), a batch at a time, on the bench's device; the result on the CPU."""
    size = bench.tree["batch_size"]
    groups = zip(*(tensor.split(size) for tensor in (images, *more)), strict=True)
    return torch.cat([function(*(tensor.to(bench.device) for tensor in group)).float().cpu() for group in groups])
