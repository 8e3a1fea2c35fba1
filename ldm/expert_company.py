"""Who draws with an expert while it trains, outside its intervals: its parents, or the members of a manifest."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.build import Parts
from ldm.diffusion.experts import Interval, subtract
from ldm.ensemble import WHOLE, load_ensemble
from ldm.ensemble_model import Ensemble
from ldm.errors import UserError
from ldm.lineage import begun_from, read_lineage
from ldm.model import Model, load_model
from ldm.residency import Among, residency_of
from ldm.sampling import Sampling
from ldm.training.judged import Company


def company_of(
    name: str, folder: Path, lineage: dict[str, Any], parts: Parts, manifest: str | None, residency: str | None = None
) -> Company | None:
    """Of the run `name` in `folder`; None for one that is for all of the noise, or no diffusion run.

    `manifest` (callback.quality.ensemble) names others than the parents of `lineage`, `residency` says where the others
    are while it draws. Raises UserError if a manifest is given and the run is not an expert.
    """
    residency_of(residency, "callback.quality.residency")
    expert, noise = parts["expert"], parts["noise"]
    intervals = None if expert is None or noise is None else expert.intervals(noise)
    if intervals is None or intervals == WHOLE:
        if manifest:
            raise UserError(f"callback.quality.ensemble={manifest}: only an expert is drawn with others")
        return None
    return ExpertCompany(name, folder, lineage, parts, intervals, manifest, residency)


class ExpertCompany(Company):
    """The expert as it is in training, and the others' averaged weights as they are saved."""

    def __init__(
        self, name: str, folder: Path, lineage: dict[str, Any], parts: Parts, intervals: list[Interval],
        manifest: str | None, residency: str | None = None,
    ):  # fmt: skip
        self.residency = residency_of(residency)
        self.name = name
        self.folder = folder
        self.lineage = lineage
        self.parts = parts
        self.intervals = intervals
        self.manifest = manifest

    @cached_property
    def others(self) -> Ensemble:
        """What draws without the expert, over all of the noise. Raises ValueError or OSError if it cannot be loaded."""
        path, own = self.parts.tree.get("first_stage"), self.parts["first_stage"]
        if self.manifest:
            found = load_ensemble(Path(self.manifest).expanduser(), path, "all")
            models, shares = found.members, found.interval_sets
        else:
            models, shares = self._parents(path)
        for model in models:
            own.spec.check(model.first_stage.spec)
        members = [self.residency.hold(replace(model, first_stage=own)) for model in models]
        return Ensemble(models[0].name, members, shares, self.residency)

    def _parents(self, first_stage: str | None) -> tuple[list[Model], Sequence[Sequence[Interval]]]:
        """The nearest of the lineage that were trained for each noise, with the weights that were branched from."""
        models, shares = [], []
        left, lineage, folder = WHOLE, self.lineage, self.folder
        while left:
            checkpoint = begun_from(lineage, folder)
            if checkpoint is None:
                raise UserError(f"nothing in its lineage was trained for the noise {left}")
            model = load_model(checkpoint, first_stage)
            trained = [(lo, hi) for lo, hi in model.weights[0].metadata.get("intervals") or WHOLE]
            models.append(model)
            shares.append(_without(left, _without(WHOLE, trained)))
            left, folder = _without(left, trained), model.weights[0].run
            lineage = read_lineage(folder, "none")
        return models, shares

    @cached_property
    def together(self) -> Ensemble:
        """The same with the expert inside its intervals."""
        parts = self.parts
        own = Model(self.name, parts["first_stage"], parts["conditioner"], parts["denoiser"], parts["schedule"], parts)
        members, shares = [own], [self.intervals]
        numbers: list[int | None] = [None]
        for number, (member, share) in enumerate(zip(self.others.members, self.others.interval_sets, strict=True)):
            left = _without(share, self.intervals)
            if left:
                members.append(member)
                shares.append(left)
                numbers.append(number)
        return Ensemble(self.name, members, shares, Among(self.residency, numbers))

    def lacks(self) -> str | None:
        try:
            assert self.together.members
        except (ValueError, OSError) as error:
            if self.manifest:
                raise UserError(f"callback.quality.ensemble={self.manifest}: {error}") from error
            return f"an expert draws with its parents, and {error}; callback.quality.ensemble= names a manifest"
        return None

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        if self.residency.takes_turns:
            self.residency.to(self.others.members, device)
            self.residency.tuned(self.others.members, False)
            try:
                yield
            finally:
                self.residency.to(self.others.members, "cpu")
            return
        parts = [part for member in self.others.members for part in (member.denoiser, member.conditioner)]
        try:
            for part in parts:
                part.to(device)
            for member in self.others.members:
                member.tuned()
            yield
        finally:
            for part in parts:
                part.cpu()
            if device.type == "cuda":
                torch.cuda.empty_cache()

    def check(self, sampling: Sampling) -> None:
        self.together.left_out(sampling)

    def draw(self, sampling: Sampling, batch: dict[str, Any], numbers: Tensor, seed: int) -> Tensor:
        return _drawn(self.together, sampling, batch, numbers, seed)

    def draw_without(self, sampling: Sampling, batch: dict[str, Any], numbers: Tensor, seed: int) -> Tensor:
        return _drawn(self.others, sampling, batch, numbers, seed)


def _drawn(model: Ensemble, sampling: Sampling, batch: dict[str, Any], numbers: Tensor, seed: int) -> Tensor:
    """By the process of the member that the sigmas begin in."""
    schedule = model.member_for(sampling.sigmas[0].item()).schedule
    return model.generate(replace(sampling, schedule=schedule), batch, numbers, seed)


def _without(intervals: Sequence[Interval], holes: Sequence[Interval]) -> list[Interval]:
    """What `intervals` leave when all `holes` are taken out."""
    left = list(intervals)
    for hole in holes:
        left = subtract(left, hole)
    return left
