"""Experts as one model: each binds its own conditioner and guidance, and each sigma goes to the member for it."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint.weights import Weights
from ldm.data.module import ShardData
from ldm.diffusion.denoiser import Denoise
from ldm.diffusion.experts import Interval, owner_of, route
from ldm.editing import Edit
from ldm.errors import UserError
from ldm.generate import Ask, NotFinite, Size, addressed, drawable, drawn, finished, latent_shape
from ldm.model import Model
from ldm.networks.compiling import Compile
from ldm.networks.precision import Precision
from ldm.residency import AllResident, Residency
from ldm.sampling import Sampling, levels_asked
from ldm.turns import Turn, Waiting


class Ensemble:
    """A Drawer of `members`, each for its intervals of the noise, which together tile [0, inf).

    They share a latent space and an image size; conditions, widths, parametrisations and processes are each member's
    own. Recipe and data are those of the member for the highest noise. A `residency` that is not of all members is the
    one that these are held by (Residency.hold).
    """

    def __init__(
        self, name: str, members: Sequence[Model], interval_sets: Sequence[Sequence[Interval]],
        residency: Residency | None = None,
    ):  # fmt: skip
        self._owner = owner_of(interval_sets)
        self.name = name
        self.first_stage = members[0].first_stage
        self.members = [replace(member, first_stage=self.first_stage) for member in members]
        self.interval_sets = interval_sets
        self._residency = residency or AllResident()

    def member_for(self, sigma: float) -> Model:
        """The member that serves a level of noise."""
        return self.members[self._owner(sigma)]

    @property
    def _lead(self) -> Model:
        return self.member_for(math.inf)

    @property
    def weights(self) -> list[Weights]:
        """Of all members, in order."""
        return [weights for member in self.members for weights in member.weights]

    @property
    def networks(self) -> list[nn.Module]:
        """Of all members, in order."""
        return [network for member in self.members for network in member.networks]

    @property
    def settings(self) -> Mapping[str, Any]:
        """None: its recipe is that of a member."""
        return {}

    @property
    def image_size(self) -> int:
        """Height and width of the training images, px."""
        return self._lead.image_size

    @property
    def data(self) -> ShardData:
        """What the member for the highest noise was trained on."""
        return self._lead.data

    @property
    def fields(self) -> set[str]:
        """The batch fields that any member reads."""
        return {name for member in self.members for name in member.fields}

    @property
    def beside_latent(self) -> set[str]:
        """The batch fields of any member's conditions that are concatenated to the latent."""
        return {name for member in self.members for name in member.beside_latent}

    @property
    def _factor(self) -> int:
        """What height and width of the latent have to be multiples of, for all members."""
        return math.lcm(*[member.denoiser.factor for member in self.members])

    def drawable(self, size: tuple[int, int], sampling: Sampling) -> tuple[int, int]:
        """The least (height, width), px, that holds an image of `size` and that all members can draw."""
        return drawable(size, self.first_stage.spec.f, self._factor, sampling.tiling)

    def sampling(self, tree: Mapping[str, Any]) -> Sampling:
        """How `tree` says to sample, else the member for the highest noise; see Model.sampling.

        The schedule is that of the member that the sigmas begin in.
        """
        use = tree.get("use_conditions")
        names = [name for member in self.members for name in member.conditioner.parts]
        unknown = [name for name in use or () if name not in names]
        if unknown:
            raise UserError(
                f"use_conditions: no condition {', '.join(unknown)}; the conditions of this model: "
                f"{', '.join(dict.fromkeys(names)) or 'none'}"
            )
        own = None if use is None else [name for name in use if name in self._lead.conditioner.parts]
        sampling = self._lead.sampling({**tree, "use_conditions": own})
        schedule = self.member_for(sampling.sigmas[0].item()).schedule
        return replace(sampling, schedule=schedule, use_conditions=None if use is None else tuple(use))

    def _each(self, sampling: Sampling) -> list[tuple[Model, Sampling]]:
        """The members with `sampling` in the conditions that each has."""
        found = []
        for member in self.members:
            known, use = member.conditioner.parts, sampling.use_conditions
            use = None if use is None else tuple(name for name in use if name in known)
            guidance = sampling.guidance.among(tuple(member.conditioner.used(use)))
            found.append((member, replace(sampling, guidance=guidance, use_conditions=use)))
        return found

    def conditions(self, sampling: Sampling) -> dict[str, set[str]]:
        """The conditions that any member uses, by name, and the fields that each reads."""
        found: dict[str, set[str]] = {}
        for member, own in self._each(sampling):
            for name, fields in member.conditions(own).items():
                found[name] = found.get(name, set()) | fields
        return found

    def missing(self, batch: Mapping[str, Any], sampling: Sampling) -> dict[str, str]:
        """Name and field of the conditions that a member uses, and that a batch has to give and does not."""
        return {
            name: field for member, own in self._each(sampling) for name, field in member.missing(batch, own).items()
        }

    def absent(self, batch: Mapping[str, Any], sampling: Sampling) -> dict[str, str]:
        """Name and field of the conditions that a member uses, and that a batch does not give and need not."""
        return {
            name: field for member, own in self._each(sampling) for name, field in member.absent(batch, own).items()
        }

    def check(self, batch: Mapping[str, Any], sampling: Sampling, given: Mapping[str, str]) -> None:
        """Say what of a batch a member does not read. Raises ValueError for values that it does not take."""
        for member, own in self._each(sampling):
            member.check(batch, own, given)

    def paintable(self, batch: Mapping[str, Any], sampling: Sampling) -> bool:
        """Whether any member can paint the phrases of a batch. Raises ValueError for one that a member does not see."""
        return any([member.paintable(batch, own) for member, own in self._each(sampling)])

    def left_out(self, sampling: Sampling, negative: Collection[str] = ()) -> frozenset[str]:
        """Conditions that guidance leaves out. Raises ValueError naming a member that cannot be sampled with it."""
        sampling.guidance.left_out(tuple(self.conditions(sampling)))
        found: set[str] = set()
        for member, own in self._each(sampling):
            try:
                found |= member.left_out(own, negative)
            except ValueError as error:
                raise UserError(f"{member.name} of {self.name}: {error}") from error
        return frozenset(found)

    def decode_in_tiles(self, size: int | None) -> None:
        """Decode larger images in overlapping tiles of this size, px, from now on; None: without tiles."""
        self.first_stage.tile = size

    def to(self, device: torch.device | str) -> "Ensemble":
        """Evaluate there; members that come and go are moved when they are needed."""
        self.first_stage.to(device)
        self._residency.to(self.members, device)
        return self

    def hollow(self) -> "Ensemble":
        """Without the weights of its networks, from now on."""
        for member in self.members:
            member.hollow()
        return self

    def tuned(self, compile: Compile = False, precision: Precision = "fp32") -> "Ensemble":
        """The same with the networks of all members laid out for their device; call it after `to`."""
        self._residency.tuned(self.members, compile, precision)
        return self

    def guided(
        self, sampling: Sampling, batch: Mapping[str, Any], num_samples: int, negative: dict[str, Any] | None = None
    ) -> Denoise:
        """All members as one denoiser, each bound to its conditions of `batch` and guided; for ldm.sampling.draw."""
        self.left_out(sampling, negative or ())
        if self._residency.takes_turns:
            self._residency.plan(self._order(sampling))
        each = [member.guided(own, batch, num_samples, negative) for member, own in self._each(sampling)]
        return route([self._entered(number, denoise) for number, denoise in enumerate(each)], self.interval_sets)

    def _order(self, sampling: Sampling) -> list[int]:
        """The numbers of the members that sampling from noise asks, evaluation after evaluation."""
        return [self._owner(sigma) for sigma in levels_asked(sampling.sampler, sampling.sigmas)]

    def _entered(self, number: int, denoise: Denoise) -> Denoise:
        def evaluated(x: Tensor, sigma: Tensor) -> Tensor:
            self._residency.enter(number)
            return denoise(x, sigma)

        return evaluated

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
        """Images [B, 3, H, W] in [-1, 1]; see Model.generate."""
        return self._generate(Ask(sampling, batch, numbers, seed, size, negative, edit))

    @torch.no_grad()
    def _generate(self, ask: Ask, heard: Callable[[Denoise], Denoise] = lambda denoise: denoise) -> Tensor:
        """Images [B, 3, H, W] by what `heard` makes of the denoiser."""
        sampling, batch, numbers, seed, size, negative, edit = ask
        shape = latent_shape(self.first_stage, size or self.image_size, self._factor, sampling.tiling)
        batch = addressed(batch, shape, sampling, numbers, seed)
        denoise = heard(self.guided(sampling, batch, len(numbers), negative))

        def kept(images: Tensor) -> Tensor:
            for member, own in self._each(sampling):
                images = member.conditioner.kept(images, batch, own.use_conditions)
            return images

        return finished(lambda: drawn(denoise, self.first_stage, sampling, shape, batch, numbers, seed, edit), kept)

    def begun(self, asks: Sequence[Ask], tell: Callable[[str], Any] = lambda words: None) -> list[Callable[[], Tensor]]:
        """Images of each of `asks`, once they are called for; see Drawer.begun.

        Of members that come and go each comes once for all batches, where the noise only falls: one switch fewer than
        there are intervals.
        """
        if not self._residency.takes_turns or len(asks) < 2:
            return [partial(self.generate, *ask) for ask in asks]
        order, turns = self._order(asks[0].sampling), [Turn() for _ in asks]
        ends: dict[int, Callable[[], Tensor]] = {}
        for number, after in pairwise(order):
            for place, (ask, turn) in enumerate(zip(asks, turns, strict=True)) if after != number else ():
                if place in ends:
                    continue
                tell(f"{self.members[number].name}, batch {place + 1} of {len(asks)}")
                outcome: Future[Tensor] = Future()
                try:
                    outcome.set_result(self._generate(ask, partial(turn.stopping, owner=self._owner)))
                except Waiting:
                    continue
                except NotFinite as error:
                    outcome.set_exception(error)
                ends[place] = outcome.result
        return [ends.get(place, partial(self._generate, ask, turns[place].ending)) for place, ask in enumerate(asks)]

    @property
    def residency(self) -> dict[str, Any]:
        """What the coming and going of members took so far; see Residency.facts."""
        return self._residency.facts
