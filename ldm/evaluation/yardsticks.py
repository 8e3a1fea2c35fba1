"""What samples are measured by: a backbone, an alignment, and the training images as the backbone sees them.

One of them may serve any number of models: networks are loaded, and training images looked at, once.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.build import Parts
from ldm.config import instantiate
from ldm.errors import UserError
from ldm.evaluation.reference import reference, seen_as
from ldm.evaluation.reference_file import Reference
from ldm.evaluation.stored_reference import facts_of
from ldm.metrics.alignment_score import AlignmentScore, alignment_score
from ldm.metrics.features import Features


class Yardsticks:
    """A `backbone` and an `alignment` on `device`; `reference(data)` is read once for each data set."""

    def __init__(self, backbone: Features, alignment: nn.Module, device: torch.device):
        self.backbone = backbone.to(device)
        self.alignment = alignment.to(device)
        self.device = device
        self._references: dict[tuple, Reference] = {}

    def reference(self, data: Any, rank: int = 0, world_size: int = 1) -> Reference:
        """What samples of a model that was trained on `data` are compared with; all ranks ask for it together."""
        facts = (data.fingerprint, data.num_train, *seen_as(data, self.backbone).items(), *data.fields)
        if facts not in self._references:
            self._references[facts] = reference(data, self.backbone, self.device, rank, world_size)
        return self._references[facts]


def yardsticks_of(tree: dict[str, Any], device: torch.device) -> Yardsticks:
    """The yardsticks that `tree` (conf/evaluate.yaml) names."""
    parts = Parts(tree)
    backbone, alignment = (instantiate(tree[key], parts, key) for key in ("metric", "alignment"))
    return Yardsticks(backbone, alignment, device)


def check_yardsticks(tree: dict[str, Any]) -> None:
    """Raises UserError for a `metric` or a `reference` that measuring could not use, hours later."""
    against, weights = tree.get("reference"), tree["metric"].get("path")
    facts_of(against)
    if weights is not None and not Path(weights).expanduser().is_file():
        raise UserError(f"metric.path={weights}: no such file")
    instantiate(tree["metric"], Parts(tree), "metric")


def shared_yardsticks(device: torch.device) -> Yardsticks:
    """The defaults of conf/evaluate.yaml with one backbone for both, which embeds no image or caption twice."""
    score = alignment_score().to(device)
    backbone = LastRemembered(score.features)
    return Yardsticks(backbone, AlignmentScore(backbone, remembering(score.sentences), score.heads), device)


class LastRemembered(Features):
    """`features` with a cache of one batch: the features of the last batch are not computed again."""

    def __init__(self, features: Features):
        super().__init__()
        self.features = features
        self.name, self.dim, self.frechet = features.name, features.dim, features.frechet
        self._asked: Tensor | None = None
        self._answer: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """As `features`; another tensor is another batch, whatever it holds."""
        if self._asked is not images:
            self._asked, self._answer = images, self.features(images)
        return self._answer

    def classify(self, features: Tensor) -> Tensor:
        """As `features`."""
        return self.features.classify(features)


def remembering(encode: Callable[[Sequence[str]], Tensor]) -> Callable[[Sequence[str]], Tensor]:
    """`encode` [B, D] with a cache: each sentence is encoded once."""
    known: dict[str, Tensor] = {}

    def encoded(sentences: Sequence[str]) -> Tensor:
        new = [sentence for sentence in dict.fromkeys(sentences) if sentence not in known]
        if new:
            known.update(zip(new, encode(new), strict=True))
        return torch.stack([known[sentence] for sentence in sentences])

    return encoded
