"""Whether stages make one cascade, told before anything is sampled, and what of them may not be meant."""

import logging
from collections.abc import Sequence
from itertools import pairwise

import torch

from ldm.cascade.stage import LOW, LOW_NOISE, Stage
from ldm.data.classes import class_names
from ldm.drawer import Drawer
from ldm.errors import UserError
from ldm.sampling import Sampling

log = logging.getLogger(__name__)


def factor_of(name: str, drawer: Drawer, first: bool) -> int:
    """Sides of the images of a stage over those of its small pictures; 1 for a `first` one that draws without.

    Raises ValueError for a later stage that is no super-resolution model, and for a stage that a cascade cannot give
    what it reads.
    """
    modelled = drawer.first_stage.key
    if modelled != "image":
        raise UserError(f"stages: {name} draws {modelled!r}, not pictures")
    others = sorted(drawer.beside_latent - {LOW})
    if others:
        raise UserError(
            f"stages: {name} has {', '.join(others)} beside its latent, of its own size, which a cascade does not give"
        )
    if LOW not in drawer.fields:
        if first:
            return 1
        read = f"it reads {', '.join(sorted(drawer.fields))}" if drawer.fields else "it has no conditions"
        raise UserError(
            f"stages: {name} is no super-resolution model: {read}, and a stage after the first reads {LOW} "
            "(conditioner=[low_resolution])"
        )
    reader = drawer.data.keys.reader(LOW)
    if reader is None or reader.reduces is None:
        raise UserError(f"stages: the data of {name} do not say how much smaller its {LOW} is than its images")
    return reader.reduces


def check_stages(stages: Sequence[Stage]) -> None:
    """Raises ValueError for stages whose sizes do not meet, or that need what the first is not given."""
    for stage in stages:
        _check_recipe(stage)
    first = stages[0]
    size = first.size
    for before, stage in pairwise(stages):
        if size * stage.factor != stage.size:
            raise UserError(
                f"stages: sizes do not meet: {before.name} draws {size} px, and {stage.name} makes {stage.size} px of "
                f"{stage.size // stage.factor} px ({stage.factor} times)"
            )
        size = stage.size
        sampling = stage.under(stage.drawer.sampling(stage.recipe.later({})), None)
        given = dict.fromkeys([*first.drawer.fields, LOW])
        for name, field in stage.drawer.missing(given, sampling).items():
            raise UserError(
                f"stages: {stage.name} always reads {field!r} (conditioner.{name}), which {first.name} is not given; "
                "train it with a drop_prob, or a first stage that reads it too"
            )
    _check_fields(stages)


def _check_recipe(stage: Stage) -> None:
    """Raises ValueError, naming the stage, for conditions that it has not and for guidance that it cannot be given."""
    sampling = stage.drawer.sampling(stage.recipe.asked({}))
    known = stage.drawer.conditions(sampling)
    unknown = [name for name in stage.recipe.use_conditions or () if name not in known]
    if unknown:
        raise UserError(
            f"{stage.name}.use_conditions: no condition {', '.join(unknown)}; the conditions of {stage.name}: "
            f"{', '.join(known) or 'none'}"
        )
    _check_low_noise(stage, stage.under(sampling, None))
    try:
        stage.drawer.left_out(stage.under(sampling, None))
    except ValueError as error:
        raise UserError(f"{stage.name}: {error}") from error


def _check_low_noise(stage: Stage, sampling: Sampling) -> None:
    """Raises ValueError for a level of noise on small pictures that the stage was not trained with."""
    level = stage.recipe.low_noise
    if level is None:
        return
    if LOW_NOISE not in set().union(*stage.drawer.conditions(sampling).values()):
        raise UserError(
            f"{stage.name}.low_noise={level:g}: {stage.name} was trained without noise on its small pictures "
            "(conditioner.low_resolution.max_noise_level)"
        )
    try:
        stage.drawer.check({LOW: None, LOW_NOISE: torch.tensor([level])}, sampling, {})
    except ValueError as error:
        raise UserError(f"{stage.name}.{error}") from error


def _check_fields(stages: Sequence[Stage]) -> None:
    """Raises ValueError for two stages to which a field of one name is not the same.

    Classes are called as the last stage's data says.
    """
    seen: dict[str, tuple[Stage, object]] = {}
    for stage in stages:
        data = stage.drawer.data
        for name in sorted(stage.drawer.fields - {LOW}):
            first, known = seen.setdefault(name, (stage, data.keys.own_pixels(name)))
            if known != data.keys.own_pixels(name):
                raise UserError(f"stages: {name!r} has another size in {stage.name} than in {first.name}")
        if not stage.drawer.fields.isdisjoint(("label", "layout")):
            own, last = (class_names(one.training_set.train) for one in (data, stages[-1].drawer.data))
            if own and last and own != last:
                raise UserError(f"stages: the data of {stage.name} and {stages[-1].name} have other classes")


def doubts(stages: Sequence[Stage]) -> list[str]:
    """One line for each stage after the first that was trained on clean small pictures alone, without noise that it is
    told of (conditioner.low_resolution.max_noise_level).
    """
    found = []
    for before, stage in pairwise(stages):
        made = stage.drawer.data.keys.derived.get(LOW)
        read = stage.drawer.conditions(stage.drawer.sampling(stage.recipe.later({}))).values()
        if made is not None and not made.degrades and not any(LOW_NOISE in fields for fields in read):
            found.append(
                f"{stage.name} was trained on clean small pictures, and what {before.name} draws is not as clean; "
                "derived=[degraded] or [bsrgan_light] trains it for that"
            )
    return found


def tell_doubts(stages: Sequence[Stage]) -> None:
    """Say them."""
    for line in doubts(stages):
        log.warning("stages: %s", line)
