"""What callback.quality measures of a run: each task says it of itself (`Task.judged`)."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ldm.data.module import ShardData
from ldm.measuring import Batch, Ranks, Row
from ldm.metrics.networks import MetricNetworks
from ldm.sampling import Sampling


class Company(ABC):
    """Others that draw outside the intervals of the expert in training, and without it everywhere."""

    @abstractmethod
    def lacks(self) -> str | None:
        """Why they cannot draw, in a line; None if they can. Raises UserError for those chosen by name that cannot."""

    @abstractmethod
    def on(self, device: torch.device) -> AbstractContextManager[None]:
        """They are on `device` within the block, and in the CPU's memory after it."""

    @abstractmethod
    def check(self, sampling: Sampling) -> None:
        """Raises UserError for guidance that one of them cannot be sampled with."""

    @abstractmethod
    def draw(self, sampling: Sampling, batch: Batch, numbers: Tensor, seed: int) -> Tensor:
        """Images [B, 3, H, W] by the expert inside its intervals and by the others outside, as a task draws them."""

    @abstractmethod
    def draw_without(self, sampling: Sampling, batch: Batch, numbers: Tensor, seed: int) -> Tensor:
        """The same by the others alone: what the expert began from."""


@dataclass(frozen=True)
class Asked:
    """How much of a run is measured, and by what; the keys of callback.quality."""

    data: ShardData
    networks: MetricNetworks
    seed: int
    num_samples: int
    num_reference: int | None  # training images to compare with; None is all
    batch_size: int  # of one rank
    scales: tuple[float, ...] | None  # of guidance; None is the run's own
    keep_networks: bool
    company: Company | None = None  # of an expert


class Measuring(Protocol):
    """callback.quality, as others know it."""

    every_steps: int | None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the metrics that are logged."""


class Judged(ABC):
    """A measurement that can be repeated at any step: its values depend on the weights and the seed alone."""

    @abstractmethod
    def lacks(self) -> str | None:
        """Why nothing can be measured, in a line; None if it can. Raises UserError for what was asked and cannot be."""

    @property
    @abstractmethod
    def num_images(self) -> int:
        """How many are made; each rank makes one at least."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The keys of what `measure` gives. It may load networks."""

    @abstractmethod
    def prepare(self, ranks: Ranks) -> None:
        """Do, once, what all measurements have in common; called as `measure` is."""

    @abstractmethod
    def measure(self, ranks: Ranks) -> Row:
        """The row of the weights as they are now, on rank 0, elsewhere {}. Raises Stopped where `ranks` says so.

        All ranks call it together, in evaluation mode, with averaged weights and in the run's precision. `nan_images`
        counts the images that are not finite; then the metrics of their set are left out.
        """
