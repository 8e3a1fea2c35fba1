"""The interface of whatever draws images: a model, an ensemble of experts, a cascade, later a token model.

Sampling, evaluation and reports use a model through it only. A new kind is a class with these methods and a loader.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from ldm.checkpoint.weights import Weights
from ldm.data.module import ShardData
from ldm.diffusion.denoiser import Denoise
from ldm.editing import Edit
from ldm.errors import UserError
from ldm.generate import Ask, NotFinite, Size
from ldm.networks.compiling import Compile
from ldm.networks.precision import Precision
from ldm.sampling import Sampling


class Drawer(Protocol):
    """Draws images of `image_size`, px, for `fields` of a batch; `data` is what it was trained on."""

    name: str

    @property
    def first_stage(self) -> nn.Module:
        """What turns images into the latents that it draws, and these into images."""

    @property
    def weights(self) -> list[Weights]:
        """All weights that it draws with: cached results are valid for their digests only."""

    @property
    def networks(self) -> list[nn.Module]:
        """The networks that denoise."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What a manifest of its says of how to sample, in plain values; {} where all of that is in its runs. Cached
        results are valid for these only.
        """

    @property
    def fields(self) -> set[str]:
        """The batch fields that it may read."""

    @property
    def image_size(self) -> int:
        """Height and width of the training images, px."""

    @property
    def data(self) -> ShardData:
        """What it was trained on."""

    @property
    def beside_latent(self) -> set[str]:
        """The batch fields of conditions that are concatenated to the latent, position by position."""

    def drawable(self, size: tuple[int, int], sampling: Sampling) -> tuple[int, int]:
        """The least (height, width), px, that holds an image of `size` and that it can draw."""

    def sampling(self, tree: Mapping[str, Any]) -> Sampling:
        """How `tree`, with the keys of conf/sample.yaml, says to sample; what is null or not there is the run's own."""

    def conditions(self, sampling: Sampling) -> dict[str, set[str]]:
        """The conditions that are used, by name, and the fields that each reads."""

    def missing(self, batch: Mapping[str, Any], sampling: Sampling) -> dict[str, str]:
        """Name and field of the conditions used that a batch has to give and does not."""

    def absent(self, batch: Mapping[str, Any], sampling: Sampling) -> dict[str, str]:
        """Name and field of the conditions used that a batch does not give and need not: they are dropped."""

    def check(self, batch: Mapping[str, Any], sampling: Sampling, given: Mapping[str, str]) -> None:
        """Say what of a batch its conditions do not read. Raises ValueError for values that they do not take, naming
        by `given` {field: words} where they come from.
        """

    def paintable(self, batch: Mapping[str, Any], sampling: Sampling) -> bool:
        """Whether phrases can be painted: it has cross-attention to tokens of the text that a batch gives.

        Raises ValueError for a phrase of the batch's `paint` that is not in a text, or that is not read.
        """

    def left_out(self, sampling: Sampling, negative: Collection[str] = ()) -> frozenset[str]:
        """Conditions that guidance leaves out; `negative` are fields that have something in the place of their null.

        Raises ValueError for guidance that would need a null which no training saw, or that has nothing to guide by.
        """

    def guided(
        self,
        sampling: Sampling,
        batch: Mapping[str, Any],
        num_samples: int,
        negative: dict[str, Any] | None = None,
    ) -> Denoise:
        """The guided denoiser (x, sigma [B]) -> x0 under the conditions of `batch`, as ldm.sampling.draw takes it."""

    def generate(
        self,
        sampling: Sampling,
        batch: dict[str, Any],
        numbers: Tensor,
        seed: int,
        size: Size | None = None,
        negative: dict[str, Any] | None = None,
        edit: Edit | None = None,
    ) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1], all that is random addressed by `seed` and `numbers` [B].

        From noise, or as `edit` says from a picture of their size.
        """

    def begun(self, asks: Sequence[Ask], tell: Callable[[str], Any] = lambda words: None) -> list[Callable[[], Tensor]]:
        """What `generate` makes of each of several batches, in order, once it is called; the same bit for bit.

        Where experts come and go, all batches are brought as far as the last expert first; `tell` hears of it.
        """

    @property
    def residency(self) -> dict[str, Any]:
        """What the coming and going of experts took so far (residency.Residency.facts); {} where nothing moves."""

    def decode_in_tiles(self, size: int | None) -> None:
        """Decode larger images in overlapping tiles of this size, px, from now on; None: without tiles."""

    def to(self, device: torch.device | str) -> Self:
        """Itself, with all parts moved."""

    def hollow(self) -> Self:
        """Itself without its networks' weights, from now on: it says what it would do, and draws no more."""

    def tuned(self, compile: Compile = False, precision: Precision = "fp32") -> Self:
        """Itself, with its networks laid out for its device (layers.tuned); call it after `to`."""


T = TypeVar("T")
TURNS = 8  # batches that wait for each other where experts come and go, if nothing else is asked for


def turns_of(model: Drawer, asked: int = TURNS) -> int:
    """How many batches of a model are begun together: one where nothing comes and goes, as none waits then."""
    return asked if model.residency else 1


def batched(items: Sequence[T], count: int) -> Iterator[Sequence[T]]:
    """`count` of them at a time, the last time what is left."""
    yield from (items[start : start + count] for start in range(0, len(items), count))


def begun_of(
    model: Drawer, sampling: Sampling, seed: int, said: list[str]
) -> Callable[[Sequence[tuple[dict[str, Any], Tensor]]], list[Callable[[], Tensor]]]:
    """What measuring.make draws by: the images of batches and numbers, begun together. Those that are not finite are
    NaN, and `said` has the words for them.
    """

    def images_of(draw: Callable[[], Tensor]) -> Tensor:
        try:
            return draw()
        except NotFinite as error:
            said.append(str(error))
            return error.images

    def begun(asked: Sequence[tuple[dict[str, Any], Tensor]]) -> list[Callable[[], Tensor]]:
        return [partial(images_of, draw) for draw in model.begun([Ask(sampling, *each, seed) for each in asked])]

    return begun


def check_conditions(model: Drawer, batch_spec: Mapping[str, Any], sampling: Sampling) -> None:
    """Raises ValueError unless batches of `batch_spec` {field: what it is} give the conditions that `model` uses."""
    for name, field in model.missing(batch_spec, sampling).items():
        raise UserError(f"conditioner.{name} reads {field!r}, which data.fields of its run does not give")
