"""One stage of a cascade: a drawer, how it is sampled, and whether it waits in memory for its turn."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ldm.cascade.recipe import StageRecipe, within
from ldm.drawer import Drawer
from ldm.editing import Edit
from ldm.generate import NotFinite
from ldm.networks.compiling import Compile
from ldm.networks.precision import Precision
from ldm.sampling import Sampling

LOW = "low_resolution"  # the field that a stage reads of what the one before it drew
LOW_NOISE = "low_noise"  # that of how noisy this is made


@dataclass
class Stage:
    """A `drawer` under its `name`; `factor` is the sides of its images over those of its small pictures, 1 for one that
    draws from conditions alone.

    With `load` the drawer is hollow, and what draws is loaded for each batch and let go after it.
    """

    name: str
    drawer: Drawer
    factor: int
    recipe: StageRecipe
    load: Callable[[], Drawer] | None = None
    _wishes: dict[str, Any] = field(default_factory=dict, init=False)

    @property
    def size(self) -> int:
        """Height and width, px, of the images it was trained to draw: of crops of them, the whole."""
        return self.drawer.data.image_size if self.factor > 1 else self.drawer.image_size

    def to(self, device: torch.device | str) -> None:
        """Move it, at once or as soon as it draws."""
        self._wish("device", device)

    def tuned(self, compile: Compile, precision: Precision) -> None:
        """Lay out its networks for its device, at once or as soon as it draws."""
        self._wish("tuned", (compile, precision))

    def decode_in_tiles(self, size: int | None) -> None:
        """Decode in tiles, from now on."""
        self._wish("tile", size)

    def _wish(self, what: str, value: Any) -> None:
        self._wishes[what] = value
        if self.load is None:
            _grant(self.drawer, {what: value})

    @contextmanager
    def ready(self) -> Iterator[Drawer]:
        """What draws, on its device."""
        if self.load is None:
            yield self.drawer
        else:
            yield _grant(self.load(), self._wishes)

    def under(self, sampling: Sampling, use: tuple[str, ...] | None) -> Sampling:
        """A sampling of its own, in the conditions that it has of `use`, where these are asked of all stages.

        Guidance that is left with nothing to guide by is left out.
        """
        known = self.drawer.conditions(replace(sampling, use_conditions=None))
        own = replace(sampling, use_conditions=within(self.recipe.use_conditions, use, known))
        if use is None:
            return own
        own = replace(own, guidance=own.guidance.among(tuple(self.drawer.conditions(own))))
        try:
            self.drawer.left_out(own)
        except ValueError:
            return own.with_scale(1.0)
        return own

    def draw(
        self,
        sampling: Sampling,
        batch: Mapping[str, Any],
        numbers: Tensor,
        seed: int,
        size: tuple[int, int],
        negative: Mapping[str, Any] | None,
        edit: Edit | None,
    ) -> tuple[Tensor, Tensor, str | None]:
        """Images [B, 3, H, W] in [-1, 1], in batches of its own; which of them are finite, bool [B], the others being
        NaN; and what is said of these. A batch without LOW_NOISE has that of its recipe.
        """
        count, found, finite, said = len(numbers), [], [], None
        step = self.recipe.batch_size or count
        if self.recipe.low_noise is not None:
            batch = {LOW_NOISE: torch.full((count,), self.recipe.low_noise, device=numbers.device), **batch}
        with self.ready() as drawer:
            for start in range(0, count, step):
                span = slice(start, start + step)
                own, other = part_of_batch(batch, span, count), part_of_batch(negative or {}, span, count)
                try:
                    images = drawer.generate(sampling, own, numbers[span], seed, size, other, edit)
                    whole = torch.ones(len(images), dtype=torch.bool, device=images.device)
                except NotFinite as error:
                    images, whole, said = error.images, error.finite, said or str(error)
                found.append(images)
                finite.append(whole)
        return torch.cat(found), torch.cat(finite), said


def _grant(drawer: Drawer, wishes: Mapping[str, Any]) -> Drawer:
    if "device" in wishes:
        drawer = drawer.to(wishes["device"])
    if "tuned" in wishes:
        drawer = drawer.tuned(*wishes["tuned"])
    if "tile" in wishes:
        drawer.decode_in_tiles(wishes["tile"])
    return drawer


def part_of_batch(batch: Mapping[str, Any], span: slice, count: int) -> dict[str, Any]:
    """A batch of `count` samples cut to those of `span`; what is not one value for each of them goes along whole."""

    def cut(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: cut(item) for key, item in value.items()}
        several = isinstance(value, Tensor | list | tuple) and not (isinstance(value, Tensor) and value.ndim == 0)
        return value[span] if several and len(value) == count else value

    return {key: cut(value) for key, value in batch.items()}
