"""Expert denoisers (eDiff-I, arXiv:2211.01324, section 4.1): intervals of noise, their binary tree, and routing.

Node (level, index) is the index-th of 2^level equally likely intervals of the training noise, lowest noise first; other
cuts are given in the units of boundaries.py. All intervals are [sigma_lo, sigma_hi): a cut belongs to the higher-noise
side. Together the experts are one denoiser.
"""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.boundaries import Interval, check_interval, interval_of, quantile
from ldm.diffusion.denoiser import Denoise, expand
from ldm.diffusion.noise import NoiseDistribution, Restricted
from ldm.errors import UserError


def _check_node(*node: int) -> None:
    if len(node) != 2 or node[0] < 0 or not 0 <= node[1] < 2 ** node[0]:
        raise UserError(
            "expert.node, expert.exclude: a node is [level, index] with level >= 0 and 0 <= index < 2^level, "
            f"got {list(node)}"
        )


def parent(level: int, index: int) -> tuple[int, int]:
    """The node whose weights a node starts from."""
    _check_node(level, index)
    if level == 0:
        raise UserError("expert.node: [0, 0] is the root, the whole of the noise; it has no parent")
    return level - 1, index >> 1


def children(level: int, index: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The lower-noise and the higher-noise half of a node."""
    _check_node(level, index)
    return (level + 1, 2 * index), (level + 1, 2 * index + 1)


def node_interval(noise: NoiseDistribution, level: int, index: int) -> Interval:
    """[sigma_lo, sigma_hi) of a node; the tree spans [0, inf). A discrete noise puts the cuts on its atoms."""
    _check_node(level, index)
    sigma_lo, sigma_hi = (quantile(noise, number / 2**level) for number in (index, index + 1))
    if not sigma_lo < sigma_hi:
        raise UserError(f"expert.node: [{level}, {index}] is empty in this training noise; choose a lower level")
    return sigma_lo, sigma_hi


def _seen(sigma: float) -> float:
    """A cut as denoisers meet it, in fp32; cuts of runs of other versions agree so, too."""
    return torch.tensor(sigma, dtype=torch.float32).item()


def subtract(intervals: list[Interval], hole: Interval) -> list[Interval]:
    """What `intervals` leave when `hole` is taken out."""
    pieces = []
    for lo, hi in intervals:
        pieces += [(lo, min(hi, hole[0])), (max(lo, hole[1]), hi)]
    return [(lo, hi) for lo, hi in pieces if _seen(lo) < _seen(hi)]


def _cut(part: Sequence[int] | Mapping[str, Any], noise: NoiseDistribution) -> Interval:
    return interval_of(part, noise) if isinstance(part, Mapping) else node_interval(noise, *part)


class Expert:
    """The part of the noise that one denoiser is for: a node or an interval (neither: all of it) without `exclude`.

    An interval is ``{sigma: [low, high]}``, or in another unit of boundaries.py, null being an open end; `exclude` has
    nodes and intervals. The training noise, which is the parent's, says where nodes and quantiles are cut; sigma is
    drawn from it, or from `within`, inside these cuts. So experts that draw otherwise still tile the noise.
    """

    def __init__(
        self,
        node: Sequence[int] | None = None,
        exclude: Sequence[Sequence[int] | Mapping[str, Any]] = (),
        within: NoiseDistribution | None = None,
        interval: Mapping[str, Any] | None = None,
    ):
        if node is not None and interval is not None:
            raise UserError("expert.node, expert.interval: an expert has one of them; set the other to null")
        self.node = (0, 0) if node is None else tuple(node)
        self.interval = interval
        self.exclude = tuple(hole if isinstance(hole, Mapping) else tuple(hole) for hole in exclude)
        self.within = within
        for key, part in [("expert.interval", self._part), *(("expert.exclude", hole) for hole in self.exclude)]:
            if isinstance(part, Mapping):
                check_interval(part, key)
            else:
                _check_node(*part)

    @property
    def _part(self) -> Sequence[int] | Mapping[str, Any]:
        return self.node if self.interval is None else self.interval

    @property
    def is_whole(self) -> bool:
        """Whether it is for all of the noise."""
        return self.interval is None and self.node == (0, 0) and not self.exclude

    def intervals(self, noise: NoiseDistribution) -> list[Interval]:
        """The intervals of sigma, ascending and disjoint, for the unrestricted training noise."""
        intervals = [_cut(self._part, noise)]
        for hole in self.exclude:
            intervals = subtract(intervals, _cut(hole, noise))
        if not intervals:
            raise UserError(f"expert.exclude: {list(self.exclude)} leaves nothing of {self._part}")
        return intervals

    def restrict(self, noise: NoiseDistribution) -> NoiseDistribution:
        """What this expert draws sigma from, given the unrestricted training noise."""
        intervals = self.intervals(noise)
        drawn = noise if self.within is None else self.within
        if intervals == [(0.0, math.inf)]:
            return drawn
        return Restricted(drawn, intervals)


def check_cover(interval_sets: Sequence[Sequence[Interval]]) -> None:
    """Refuse members whose intervals do not tile [0, inf), naming the gap or the overlap."""
    pieces = sorted((lo, hi, member) for member, intervals in enumerate(interval_sets) for lo, hi in intervals)
    end, before = 0.0, None
    for lo, hi, member in pieces:
        if not _seen(lo) < _seen(hi):
            raise UserError(f"members: member {member} has an empty interval, sigma [{lo:.9g}, {hi:.9g})")
        if _seen(lo) > _seen(end):
            raise UserError(f"members: gap, no member is for sigma in [{end:.9g}, {lo:.9g})")
        if _seen(lo) < _seen(end):
            overlap = f"sigma in [{lo:.9g}, {min(hi, end):.9g})"
            raise UserError(f"members: overlap, members {before} and {member} are both for {overlap}")
        end, before = hi, member
    if end < math.inf:
        raise UserError(f"members: gap, no member is for sigma in [{end:.9g}, inf)")


def owner_of(interval_sets: Sequence[Sequence[Interval]]) -> Callable[[float], int]:
    """The number of the member that is for a sigma. Raises ValueError for intervals that do not tile [0, inf)."""
    check_cover(interval_sets)
    pieces = sorted((lo, member) for member, intervals in enumerate(interval_sets) for lo, _ in intervals)
    # Sigma comes as fp32: a cut rounds like it, so that a sampler's level on a cut still meets the higher-noise side.
    lower, owner = [_seen(lo) for lo, _ in pieces], [member for _, member in pieces]
    return lambda sigma: owner[bisect.bisect_right(lower, _seen(sigma)) - 1]


def route(denoises: Sequence[Denoise], interval_sets: Sequence[Sequence[Interval]]) -> Denoise:
    """Several bound denoisers as one: each evaluation goes to the member whose intervals hold its sigma.

    Every member has bound conditions and guidance of its own. One is evaluated where all of sigma [B] agree, as they do
    in sampling; else each that is asked for, on the whole batch.
    """
    if len(denoises) != len(interval_sets):
        raise UserError(f"members: {len(denoises)} denoisers but {len(interval_sets)} sets of intervals")
    owner = owner_of(interval_sets)

    def routed(x: Tensor, sigma: Tensor) -> Tensor:
        owners = [owner(level) for level in sigma.tolist()]
        first, *others = sorted(set(owners))
        result, own = denoises[first](x, sigma), torch.tensor(owners, device=x.device)
        for other in others:
            result = torch.where(expand(own == other, x), denoises[other](x, sigma), result)
        return result

    return routed
