"""The schedule of a published file: twelve buffers of a chain of steps."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from ldm.build import Parts
from ldm.convert import foreign
from ldm.diffusion.schedule import Discrete, cosine_betas
from ldm.errors import UserError

log = logging.getLogger(__name__)


def discrete(parts: Parts) -> Discrete:
    """The chain of steps of a tree. Raises ValueError if its schedule has none."""
    schedule = parts["schedule"]
    if not isinstance(schedule, Discrete):
        raise UserError("schedule: the published layout has the buffers of a chain of steps, as scaled_linear is")
    return schedule


def buffers(schedule: Discrete) -> foreign.State:
    """The twelve buffers of a schedule, float32, by name (arXiv 2006.11239, equations 4 to 7)."""
    alpha_bar = 1 / (1 + schedule.sigmas**2)
    before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    beta = 1 - alpha_bar / before
    variance = beta * (1 - before) / (1 - alpha_bar)
    values = (
        beta, alpha_bar, before, alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), (1 - alpha_bar).log(),
        (1 / alpha_bar).sqrt(), (1 / alpha_bar - 1).sqrt(), variance, variance.clamp(min=1e-20).log(),
        beta * before.sqrt() / (1 - alpha_bar), (1 - before) * (1 - beta).sqrt() / (1 - alpha_bar),
    )  # fmt: skip
    return {name: value.float() for name, value in zip(foreign.SCHEDULE, values, strict=True)}


def with_schedule(state: foreign.State, parts: Parts, source: str) -> foreign.State:
    """`state` with the buffers of the tree's schedule if it lacks all of them, as files that others made smaller do."""
    if any(name in state for name in foreign.SCHEDULE):
        return state
    log.warning("%s: says nothing of its schedule; the experiment's is taken", source)
    return {**buffers(discrete(parts)), **state}


def compare_schedule(schedule: Discrete, state: Mapping[str, Tensor], source: str) -> None:
    """Warn if the file was trained with another noise schedule than the tree's."""
    own, theirs = buffers(schedule)["alphas_cumprod"], state["alphas_cumprod"].float()
    if not torch.allclose(own, theirs, rtol=1e-3, atol=1e-6):
        log.warning(
            "%s: its alphas_cumprod ends at %.3g, the experiment's schedule at %.3g; the experiment's is used%s",
            source, theirs[-1], own[-1], _words(state["betas"].double()),
        )  # fmt: skip


def _words(betas: Tensor) -> str:
    """The end of a warning: the override that imports these betas, if their schedule is a known one."""
    first, last, length = betas[0].item(), betas[-1].item(), len(betas)
    if not 0 < first <= last < 1:
        return ""
    ends = f"schedule.beta_start={first:.6g} schedule.beta_end={last:.6g}"
    known = {
        "cosine": cosine_betas(length),
        f"scaled_linear {ends}": torch.linspace(first**0.5, last**0.5, length, dtype=torch.float64) ** 2,
        f"linear {ends}": torch.linspace(first, last, length, dtype=torch.float64),
    }
    found = next((words for words, own in known.items() if torch.allclose(own, betas, rtol=1e-3)), None)
    return f"; the file's is schedule={found}" if found else ""
