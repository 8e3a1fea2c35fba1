"""What callback.quality measures of a run: each task says it of itself (`Task.judged`)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from ldm.data.module import ShardData
from ldm.measuring import Ranks, Row
from ldm.metrics.networks import MetricNetworks

FEWEST = 4  # samples, and images to compare them with: precision asks for the third neighbour


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
