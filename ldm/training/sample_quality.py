"""The quality of what a diffusion run draws, against its training images, by the networks that evaluate.py uses too."""

import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ldm.errors import UserError
from ldm.generate import NotFinite
from ldm.measuring import FEWEST, Made, Ranks, Row, alignment_key, look_at, make, row_of
from ldm.metrics.quality import METRICS
from ldm.ranks import is_rank_zero
from ldm.sampling import Sampling
from ldm.training.judged import Asked, Judged

log = logging.getLogger(__name__)
# Images [B, 3, H, W] for a recipe, a batch, the numbers [B] of what is drawn, and a seed.
DrawWith = Callable[[Sampling, dict[str, Any], Tensor, int], Tensor]


class SampleQuality(Judged):
    """Images by `draw` for the first conditions of the training data, always the same, at each of the asked scales.

    `checked(sampling)` raises ValueError for guidance that the model cannot be sampled with.
    """

    def __init__(self, asked: Asked, draw: DrawWith, sampling: Sampling, checked: Callable[[Sampling], Any]):
        self.asked = asked
        self.draw = draw
        self.checked = checked
        scales = asked.scales
        self.samplings = {"": sampling} if scales is None else {at(s): sampling.with_scale(s) for s in scales}
        self._real: Tensor | None = None  # features of the images to compare with, on rank 0

    @property
    def captioned(self) -> bool:
        """Whether there are captions that images may agree with."""
        return "caption" in self.asked.data.batch_spec

    def lacks(self) -> str | None:
        data, networks = self.asked.data, self.asked.networks
        for suffix, sampling in self.samplings.items():
            try:
                self.checked(sampling)
            except ValueError as error:
                raise UserError(f"callback.quality.scales ({suffix[1:]}): {error}") from error
        if "image" not in data.batch_spec:
            return "data.with_images=false, so there are no images to compare with"
        if data.num_train < FEWEST:
            return f"data.train has {data.num_train} samples, and {FEWEST} are needed to compare with"
        for line in networks.check(self.captioned):
            if networks.lacks_backbone is None and is_rank_zero():
                log.warning("callback.quality leaves out the alignment: %s", line)
        return networks.lacks_backbone

    @property
    def num_images(self) -> int:
        return self.asked.num_samples

    @property
    def names(self) -> tuple[str, ...]:
        networks = self.asked.networks
        backbone = networks.backbone()
        metrics = [f"{metric}/{backbone.name}" for metric in (backbone.frechet, *METRICS)]
        alignment = networks.aligned() if self.captioned else None
        metrics += [] if alignment is None else [alignment_key(alignment)]
        return tuple(f"{metric}{suffix}" for suffix in self.samplings for metric in metrics)

    def prepare(self, ranks: Ranks) -> None:
        asked = self.asked
        with asked.networks.on(ranks.device, captioned=False, keep=asked.keep_networks) as (backbone, _):
            self._real = look_at(asked.data, asked.num_reference, asked.batch_size, backbone, ranks)

    def compare_as(self, other: "SampleQuality") -> None:
        """Compare with the images that `other` has looked at."""
        self._real = other._real

    def measure(self, ranks: Ranks) -> Row:
        asked, row, seconds = self.asked, {"nan_images": 0.0}, 0.0
        with asked.networks.on(ranks.device, self.captioned, asked.keep_networks) as (backbone, alignment):
            for suffix, sampling in self.samplings.items():
                made = make(
                    lambda batch, numbers, sampling=sampling: self._drawn(sampling, batch, numbers),  # type: ignore[misc]  # a lambda with a default
                    asked.data, asked.num_samples, asked.batch_size, backbone, alignment, ranks, cached=True,
                )  # fmt: skip
                seconds += made.seconds
                row["nan_images"] += len(made.broken)
                if ranks.rank == 0 and not made.broken:
                    found = row_of(made, self._real, backbone, alignment, asked.seed)
                    row |= {f"{metric}{suffix}": value for metric, value in found.items()}
                elif ranks.rank == 0:
                    _warn(made, suffix)
        row["samples_per_second"] = asked.num_samples * len(self.samplings) / max(seconds, 1e-9)
        return row if ranks.rank == 0 else {}

    def _drawn(self, sampling: Sampling, batch: dict[str, Any], numbers: Tensor) -> Tensor:
        try:
            return self.draw(sampling, batch, numbers, self.asked.seed)
        except NotFinite as error:
            return error.images


def at(scale: float) -> str:
    """What follows a metric's name where several scales are measured."""
    return f"@scale_{scale:g}"


def _warn(made: Made, suffix: str) -> None:
    shown = ", ".join(map(str, made.broken[:5]))
    more = f" and {len(made.broken) - 5} more" if len(made.broken) > 5 else ""
    log.warning("quality%s: images %s%s are not finite, so there are no metrics of this step", suffix, shown, more)
