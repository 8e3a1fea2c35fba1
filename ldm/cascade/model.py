"""Stages as one drawer: the first draws from conditions, each other enlarges what the one before it drew (eDiff-I,
arXiv 2211.01324, section 3.1; cascades: arXiv 2106.15282). What a stage is given is never degraded.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from ldm.cascade.data import data_of
from ldm.cascade.stage import LOW, LOW_NOISE, Stage
from ldm.checkpoint.weights import Weights
from ldm.data.module import ShardData
from ldm.diffusion.counter_random import Normal
from ldm.diffusion.denoiser import Denoise
from ldm.editing import Edit
from ldm.errors import UserError
from ldm.generate import Ask, NotFinite, Size
from ldm.networks.compiling import Compile
from ldm.networks.precision import Precision
from ldm.sampling import Sampling

# Of sample.py's keys that only the first stage knows, what needs its weights before it draws.
NEED_WEIGHTS = ("weak_model", "classifier")
OF_FIRST = ("loss_guidance", "first_stage", *NEED_WEIGHTS)


class Cascade:
    """A Drawer of `stages`, whose sizes meet (ldm.cascade.checks).

    A Sampling of it is that of the first stage that draws, with those of the `later` ones: all stages from noise, those
    after the first for a small picture. Each has its own recipe, and what a command line asks for of sampler, sigmas,
    steps and guidance is for the first that draws; windows and conditions are for all. Its data is that of the last
    stage, at its whole size, with the fields of all.
    """

    def __init__(self, name: str, stages: Sequence[Stage]):
        self.name = name
        self.stages = list(stages)

    @property
    def first_stage(self) -> nn.Module:
        """That of the last stage."""
        return self.stages[-1].drawer.first_stage

    @property
    def weights(self) -> list[Weights]:
        """Of all stages, in order."""
        return [weights for stage in self.stages for weights in stage.drawer.weights]

    @property
    def networks(self) -> list[nn.Module]:
        """Of all stages, in order."""
        return [network for stage in self.stages for network in stage.drawer.networks]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The recipe of each stage, by its name."""
        return {
            stage.name: {
                key: value
                for key, value in stage.recipe.plain.items()
                if key != "batch_size" and (key != LOW_NOISE or value is not None)  # as before manifests had it
            }
            for stage in self.stages
        }

    @property
    def fields(self) -> set[str]:
        """The batch fields that any stage reads."""
        return {name for stage in self.stages for name in stage.drawer.fields}

    @property
    def image_size(self) -> int:
        """Height and width of what the last stage draws, px."""
        return self.stages[-1].size

    @cached_property
    def data(self) -> ShardData:
        """What the last stage was trained on, with what all stages read."""
        datas = [stage.drawer.data for stage in self.stages]
        return data_of(datas, [stage.factor for stage in self.stages], self.fields)

    @property
    def beside_latent(self) -> set[str]:
        """The small picture, where a stage takes one."""
        return {name for stage in self.stages for name in stage.drawer.beside_latent}

    def drawable(self, size: tuple[int, int], sampling: Sampling) -> tuple[int, int]:
        """The least (height, width), px, that holds an image of `size` and that all stages that draw can draw."""
        each = self._each(sampling)
        factors = [stage.factor for stage, _ in each]
        scale = [math.prod(factors[1 : place + 1]) for place in range(len(each))]  # of each, to the first that draws

        def least(side: int, unit: int) -> int:
            return -(-side // unit) * unit

        height, width = (least(-(-side // scale[-1]), factors[0]) for side in size)
        while True:
            found = [
                stage.drawer.drawable((height * times, width * times), own)
                for (stage, own), times in zip(each, scale, strict=True)
            ]
            rows, columns = (
                least(max(-(-one[axis] // times) for one, times in zip(found, scale, strict=True)), factors[0])
                for axis in (0, 1)
            )
            if (rows, columns) == (height, width):
                return height * scale[-1], width * scale[-1]
            height, width = rows, columns

    def sampling(self, tree: Mapping[str, Any]) -> Sampling:
        """How `tree` says to sample the first stage that draws, and its manifest all others; see Model.sampling.

        Raises ValueError for a condition that no stage has, and for guidance by a model that needs the weights of a
        stage which is not in memory.
        """
        use = tree.get("use_conditions")
        first, *later = self.stages[self._begins(tree) :]
        for key in NEED_WEIGHTS:
            if tree.get(key) and first.load is not None:
                raise UserError(f"{key}: needs {first.name} in memory; write {self.name} with resident=all")
        own = first.drawer.sampling({**first.recipe.asked(tree), "use_conditions": None})
        rest = {key: None for key in OF_FIRST}
        others = [stage.drawer.sampling({**stage.recipe.later(tree), **rest}) for stage in later]
        if use is not None:
            samplings = zip([first, *later], [own, *others], strict=True)
            known = dict.fromkeys(name for stage, one in samplings for name in stage.drawer.conditions(one))
            unknown = [name for name in use if name not in known]
            if unknown:
                raise UserError(
                    f"use_conditions: no condition {', '.join(unknown)}; the conditions of this model: "
                    f"{', '.join(known) or 'none'}"
                )
        chosen = {**own.chosen, "tiling": tree.get("tiling")}  # a stage's own stands in the manifest
        return replace(own, later=tuple(others), use_conditions=None if use is None else tuple(use), chosen=chosen)

    def _begins(self, tree: Mapping[str, Any]) -> int:
        """The place of the first stage that draws: for a small picture, or an image to make it of, the next."""
        given = {LOW if tree.get("low") else None, "image" if tree.get("image") else None, *(tree.get("given") or {})}
        first = self.stages[0]
        enlarges = LOW in given or ("image" in given and "image" not in first.drawer.fields)
        return 1 if enlarges and first.factor == 1 and len(self.stages) > 1 else 0

    def _each(self, sampling: Sampling) -> list[tuple[Stage, Sampling]]:
        """The stages that draw, each with its own sampling; noise is another in each, that of the first as alone."""
        every = (replace(sampling, later=()), *sampling.later)
        begins = len(self.stages) - len(every)
        found = []
        for place, own in enumerate(every, begins):
            noise = sampling.normal if place == 0 else _of_stage(sampling.normal, place)
            found.append((self.stages[place], replace(own, normal=noise)))
        return [(stage, stage.under(own, sampling.use_conditions)) for stage, own in found]

    def conditions(self, sampling: Sampling) -> dict[str, set[str]]:
        """The conditions that any stage uses, by name, and the fields that each reads, but for what a stage drew."""
        found: dict[str, set[str]] = {}
        for place, (stage, own) in enumerate(self._each(sampling)):
            for name, fields in stage.drawer.conditions(own).items():
                given = fields - {LOW} if place else fields
                if given or not fields:
                    found[name] = found.get(name, set()) | given
        return found

    def missing(self, batch: Mapping[str, Any], sampling: Sampling) -> dict[str, str]:
        """Name and field of the conditions that a stage uses, and that a batch has to give and does not."""
        found: dict[str, str] = {}
        for place, (stage, own) in enumerate(self._each(sampling)):
            found |= stage.drawer.missing({**batch, LOW: None} if place else batch, own)
        return found

    def absent(self, batch: Mapping[str, Any], sampling: Sampling) -> dict[str, str]:
        """Name and field of the conditions that a stage uses, and that a batch does not give and need not."""
        found: dict[str, str] = {}
        for place, (stage, own) in enumerate(self._each(sampling)):
            found |= stage.drawer.absent({**batch, LOW: None} if place else batch, own)
        return found

    def check(self, batch: Mapping[str, Any], sampling: Sampling, given: Mapping[str, str]) -> None:
        """Say what of a batch a stage does not read. Raises ValueError for values that it does not take."""
        for place, (stage, own) in enumerate(self._each(sampling)):
            stage.drawer.check({k: v for k, v in batch.items() if not place or k != LOW}, own, given)

    def paintable(self, batch: Mapping[str, Any], sampling: Sampling) -> bool:
        """Of the first stage that draws, where all that is painted is decided; see Model.paintable."""
        stage, own = self._each(sampling)[0]
        return stage.drawer.paintable(batch, own)

    def begun(self, asks: Sequence[Ask], tell: Callable[[str], Any] = lambda words: None) -> list[Callable[[], Tensor]]:
        """Images of each of `asks`, once they are called for; see Drawer.begun."""
        return [partial(self.generate, *ask) for ask in asks]

    @property
    def residency(self) -> dict[str, Any]:
        """Of the experts that its stages are made of nothing is counted."""
        return {}

    def left_out(self, sampling: Sampling, negative: Collection[str] = ()) -> frozenset[str]:
        """Conditions that guidance leaves out. Raises ValueError naming a stage that cannot be sampled with it."""
        found: set[str] = set()
        for stage, own in self._each(sampling):
            try:
                found |= stage.drawer.left_out(own, negative)
            except ValueError as error:
                raise UserError(f"{stage.name} of {self.name}: {error}") from error
        return frozenset(found)

    def decode_in_tiles(self, size: int | None) -> None:
        """Decode larger images of all stages in overlapping tiles of this size, px, from now on; None: without."""
        for stage in self.stages:
            stage.decode_in_tiles(size)

    def to(self, device: torch.device | str) -> "Cascade":
        """Move all stages that are in memory, and the others when they draw."""
        for stage in self.stages:
            stage.to(device)
        return self

    def hollow(self) -> "Cascade":
        """Without the weights of its networks, from now on."""
        for stage in self.stages:
            stage.drawer = stage.drawer.hollow()
        return self

    def tuned(self, compile: Compile = False, precision: Precision = "fp32") -> "Cascade":
        """The same with the networks of all stages laid out for their device; call it after `to`."""
        for stage in self.stages:
            stage.tuned(compile, precision)
        return self

    def guided(
        self, sampling: Sampling, batch: Mapping[str, Any], num_samples: int, negative: dict[str, Any] | None = None
    ) -> Denoise:
        """Raises ValueError: each of its stages denoises pictures of its own."""
        names = ", ".join(stage.name for stage in self.stages)
        raise UserError(f"{self.name}: a cascade has no denoiser of its own; name one of its stages ({names})")

    @torch.no_grad()
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
        """Images [B, 3, H, W] in [-1, 1] of the last stage; see Model.generate.

        `size` is that of these. An edit is the first's that draws, and what it holds is held by all. Of images that are
        not finite the others are drawn to their end.
        """
        each, sizes = self._each(sampling), self._sizes(sampling, size or self.image_size, batch)
        images, finite, said = torch.empty(0), torch.ones(len(numbers), dtype=torch.bool, device=numbers.device), None
        for place, ((stage, own), at) in enumerate(zip(each, sizes, strict=True)):
            given = dict(batch) if place == 0 else {**batch, LOW: images.nan_to_num(0.0)}
            images, whole, told = stage.draw(own, given, numbers, seed, at, negative, _edit_of(edit, at, place))
            finite, said = finite & whole, said or told
            if place < len(each) - 1:
                sampling.seen(stage.name, images)
        images = images if edit is None else edit.put(images)
        if said is not None:
            raise NotFinite(said, images.where(finite[:, None, None, None], torch.nan), finite)
        return images

    def _sizes(self, sampling: Sampling, size: Size, batch: Mapping[str, Any]) -> list[tuple[int, int]]:
        """(height, width), px, of what each stage draws for images of `size`. Raises ValueError for one that they
        cannot draw, or that is not the small picture's times what they enlarge it.
        """
        height, width = (size, size) if isinstance(size, int) else size
        least = self.drawable((height, width), sampling)
        if least != (height, width):
            named = f"image_size={height}" if height == width else f"height={height}, width={width}"
            raise UserError(
                f"{named}: the stages of {self.name} do not draw that; {least[1]} x {least[0]} px is the least that "
                "holds it"
            )
        factors, sizes = [stage.factor for stage, _ in self._each(sampling)], [(height, width)]
        for factor in reversed(factors[1:]):
            sizes.insert(0, (sizes[0][0] // factor, sizes[0][1] // factor))
        if factors[0] > 1:
            small, needed = tuple(batch[LOW].shape[-2:]), tuple(side // factors[0] for side in sizes[0])
            if small != needed:
                raise UserError(
                    f"{LOW} of {small[1]} x {small[0]} px: {self.name} makes images of {width} x {height} of "
                    f"{needed[1]} x {needed[0]}"
                )
        return sizes


def _of_stage(normal: Normal, place: int) -> Normal:
    """Draws that are independent of those of other stages, which have other sizes and may not share their noise."""

    def drawn(seed: int, purpose: str, numbers: Tensor, shape: tuple[int, ...], stream: int = 0) -> Tensor:
        return normal(seed, f"stage {place} {purpose}", numbers, shape, stream)

    return drawn


def _edit_of(edit: Edit | None, size: tuple[int, int], place: int) -> Edit | None:
    """What a stage does of an edit: the first that draws all, those after it hold what is held."""
    if edit is None or (place and edit.hole is None):
        return None
    own = edit.resized(size)
    return own if place == 0 else replace(own, strength=1.0)
