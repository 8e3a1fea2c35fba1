"""What a node of the tree has of the training and of the sampling, and which cuts these and measured gains propose.

eDiff-I's (9, 511) has 1/512 of the training noise, and 9 of 25 steps from sigma 80 down: the deepest cuts pay for the
levels that training hardly ever sees and sampling goes through every time (arXiv:2211.01324, section 4.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ldm.diffusion.boundaries import Interval
from ldm.diffusion.experts import Expert
from ldm.diffusion.noise import NoiseDistribution, Restricted
from ldm.errors import UserError

Node = tuple[int, int]


@dataclass(frozen=True)
class NodeShare:
    """A node's interval of sigma, its share of the `training` noise, and of the sampling's steps, by where they begin.

    `gain` is what a short training on of the whole model took off the held-out loss inside it, `half` half of its 95 %
    interval; None where it was not measured.
    """

    node: Node
    interval: Interval
    training: float
    sampling: float
    gain: float | None = None
    half: float | None = None

    @property
    def payoff(self) -> float:
        """What a sample of training buys there: the sure part of the gain, for each time that sampling asks for it.

        In training on all of the noise a node gets its share of the samples; an expert gets them all.
        """
        sure = 1.0 if self.gain is None else max(0.0, self.gain - (self.half or 0.0))
        return sure * self.sampling / self.training


def spines(levels: int) -> list[Node]:
    """The root, then the lowest and the highest node of each level, 1 to `levels`."""
    return [(0, 0), *(node for level in range(1, levels + 1) for node in ((level, 0), (level, 2**level - 1)))]


def shares(noise: NoiseDistribution, sigmas: Tensor, nodes: Sequence[Node]) -> list[NodeShare]:
    """The shares of `nodes`, without those that are empty under this noise, under sampling at `sigmas` [n + 1]."""
    found = []
    starts = sigmas[:-1].double()
    for node in nodes:
        try:
            [interval] = Expert(node).intervals(noise)
            mass = 1.0 if node == (0, 0) else Restricted(noise, [interval]).mass
        except UserError:
            continue
        inside = (starts >= interval[0]) & (starts < interval[1])
        found.append(NodeShare(node, interval, mass, inside.double().mean().item()))
    return found


def with_gain(share: NodeShare, gain: float, half: float) -> NodeShare:
    """The same with its measured gain."""
    return replace(share, gain=gain, half=half)


def propose(found: Sequence[NodeShare], least_share: float) -> list[NodeShare]:
    """The nodes that deserve an expert: of each spine the one with the highest payoff, lowest noise first.

    Only those that at least `least_share` of the steps are in, and that pay more than training on over all of the
    noise. What they leave is for one more.
    """
    root = next(share for share in found if share.node == (0, 0))
    best = []
    for high in (False, True):
        side = [s for s in found if s.node[0] > 0 and (s.node[1] > 0) is high and s.sampling >= least_share]
        top = max(side, key=lambda share: share.payoff, default=None)
        if top is not None and top.payoff > root.payoff:
            best.append(top)
    return best


def rows_of(proposed: Sequence[NodeShare], base_steps: int, budget: int) -> list[dict]:
    """Rows of a schedule: the base, an expert for each node, one for what they leave; `budget` steps by their shares of
    the sampling.
    """
    nodes = [list(share.node) for share in proposed]
    parts: list[tuple[dict, float]] = [
        ({"node": node}, share.sampling) for node, share in zip(nodes, proposed, strict=True)
    ]
    if nodes != [[1, 0], [1, 1]]:
        parts.append(({"exclude": [list(node) for node in nodes]}, 1 - sum(share.sampling for share in proposed)))
    names = ["low" if share.node[1] == 0 else "high" for share in proposed] + ["rest"]
    rows: list[dict] = [{"name": "base", "steps": base_steps}]
    for name, (part, share) in zip(names, parts, strict=False):
        rows.append({"name": name, "from": "base", **part, "steps": max(1, round(budget * share))})
    return rows
