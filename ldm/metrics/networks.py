"""The networks that images are judged by while a run trains: those asked for, else the packaged ones.

The packaged ones, EfficientNet-lite0 and the alignment score, have to be fetched once. What was not fetched is left
out; only what was chosen by name is refused. They are loaded when they are needed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ldm.errors import UserError
from ldm.metrics.alignment_score import alignment_score
from ldm.metrics.features import Features, efficientnet_features
from ldm.networks.downloads import locate


class MetricNetworks:
    """A backbone made by `metric` and an alignment made by `alignment`; None for the packaged ones."""

    def __init__(
        self, metric: Callable[[], Features] | None = None, alignment: Callable[[], nn.Module] | None = None
    ) -> None:
        self.metric = metric
        self.alignment = alignment
        self._backbone: Features | None = None
        self._aligned: nn.Module | None = None

    def check(self, captioned: bool) -> list[str]:
        """Why packaged ones are left out, a line each. Raises UserError if one chosen by name cannot be loaded."""
        if self.metric is not None:
            self.backbone()
        if captioned and self.alignment is not None:
            self.aligned()
        return [line for line in (self.lacks_backbone, self.lacks_alignment if captioned else None) if line]

    @property
    def lacks_backbone(self) -> str | None:
        """Why there is no backbone: the packaged one was not fetched."""
        return _lacks("efficientnet_lite0") if self.metric is None else None

    @property
    def lacks_alignment(self) -> str | None:
        """Why there is no alignment: the packaged one was not fetched."""
        return (_lacks("efficientnet_lite0") or _lacks("minilm")) if self.alignment is None else None

    def backbone(self) -> Features:
        """On the CPU, loaded when it is first asked for."""
        if self._backbone is None:
            self._backbone = (self.metric or efficientnet_features)()
        return self._backbone

    def aligned(self) -> nn.Module | None:
        """The alignment, on the CPU, loaded when it is first asked for; None if the packaged one was not fetched."""
        if self._aligned is None and self.lacks_alignment is None:
            self._aligned = (self.alignment or alignment_score)()
        return self._aligned

    @contextmanager
    def on(
        self, device: torch.device, captioned: bool, keep: bool = True
    ) -> Iterator[tuple[Features, nn.Module | None]]:
        """The backbone and, where images are `captioned`, the alignment if there is one, on `device` within the block.

        After it they wait in the CPU's memory, or, unless `keep`, are gone until they are loaded anew.
        """
        backbone, alignment = self.backbone(), self.aligned() if captioned else None
        try:
            yield backbone.to(device), None if alignment is None else alignment.to(device)
        finally:
            for network in (backbone, alignment):
                if network is not None:
                    network.cpu()
            if not keep:
                self._backbone = self._aligned = None
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _lacks(part: str) -> str | None:
    try:
        locate(part)
    except UserError as error:
        return str(error)
    return None
