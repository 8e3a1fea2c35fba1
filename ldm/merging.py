"""Experts of one network averaged into a single model again: a baseline for the ensemble, as a run of its own.

A plain average of weights (arXiv:2203.05482), each expert's by the share of the training noise that it serves, or by
given weights. Experts of other networks cannot be averaged.
"""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.build import Parts
from ldm.checkpoint import weights
from ldm.checkpoint.weights import Weights
from ldm.compatibility import MEANING, differences, names_of
from ldm.config import load_tree
from ldm.convert import lora
from ldm.convert.first_stage import save_branch_point
from ldm.diffusion.experts import Interval
from ldm.diffusion.noise import NoiseDistribution
from ldm.ensemble import WHOLE, check_member, lead_of, read_members
from ldm.errors import UserError
from ldm.holding import held
from ldm.overwriting import FIRST, LAST
from ldm.places import first_stage_of, paths_of, relative
from ldm.run import Run, code_version

WHOLE_NOISE = {"node": [0, 0], "exclude": [], "within": None, "interval": None}


def merge(manifest: Path, out: Path, given: Sequence[float] | None = None) -> tuple[Run, dict[str, float]]:
    """A run in the folder `out` whose weights are the average of those that a manifest names, and each one's share.

    Shares are those of the training noise, or `given`, one number a member, made to add up to 1. Raises ValueError for
    members of other networks, naming the key, before anything is written.
    """
    if any((out / name).exists() for name in (*FIRST, LAST)):
        raise UserError(f"out={out}: there is a run already, or a part of one; give another folder")
    members = read_members(manifest)
    found = [weights.load(member.file) for member in members]
    for member, own in zip(members, found, strict=True):
        check_member(member, own, manifest)
    names = names_of(own.run for own in found)
    # An adapter is a product of two factors, whose average is not that of the factors: it is put into the weights.
    whole = [lora.merged(load_tree(own.run / "config.yaml"), own) for own in found]
    trees, found = [tree for tree, _ in whole], [own for _, [own] in whole]
    _check_same(names, trees)
    for own in found[1:]:
        weights.check_fit(found[0].state, own.state, f"members: {own.path}")
    noise = Parts(trees[0])["noise"]
    shares = [mass(noise, member.intervals) for member in members] if given is None else _given(given, names)
    state = average([own.state for own in found], shares)
    lead = members.index(lead_of(members))
    run = _write(out, found[lead], trees[lead], state)
    told = dict(zip(names, shares, strict=True))
    rows = [
        {"run": name, "weights": relative(own.path, out), "sha256": own.digest, "share": share}
        for (name, share), own in zip(told.items(), found, strict=True)
    ]
    run.record(merged=rows, finished_step=run.tree["max_steps"])
    return run, told


def mass(noise: NoiseDistribution, intervals: Sequence[Interval]) -> float:
    """The share of the training noise in `intervals` of sigma."""
    ends = torch.tensor(intervals, dtype=torch.float64).reshape(-1, 2)
    return float((noise.below(ends[:, 1]) - noise.below(ends[:, 0])).sum())


def average(states: Sequence[dict[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """Sum of the states' tensors times `shares`; what is no floating-point number is the first one's."""
    merged = {}
    for name, first in states[0].items():
        if not first.is_floating_point():
            merged[name] = first.clone()
            continue
        total = torch.zeros_like(first, dtype=torch.float64)
        for state, share in zip(states, shares, strict=True):
            total.add_(state[name].double(), alpha=share)
        merged[name] = total.to(first.dtype)
    return merged


def _check_same(names: Sequence[str], trees: Sequence[dict[str, Any]]) -> None:
    for (one, first), (other, second) in combinations(zip(names, trees, strict=True), 2):
        for key, (here, there) in differences(first, second, (*MEANING, "noise")).items():
            raise UserError(
                f"members: {key} is {here!r} in {one} and {there!r} in {other}; only weights of one network that mean "
                "the same can be averaged"
            )


def _given(given: Sequence[float], names: Sequence[str]) -> list[float]:
    plain = all(isinstance(share, int | float) and share >= 0 for share in given)
    if not plain or len(given) != len(names) or not 0 < sum(given) < float("inf"):
        raise UserError(f"weights={list(given)}: one number of at least 0 for each of {', '.join(names)}, not all 0")
    return [share / sum(given) for share in given]


def _write(out: Path, lead: Weights, tree: dict[str, Any], state: dict[str, Tensor]) -> Run:
    """The run: the lead's tree for all of the noise, the weights, and a checkpoint to branch from."""
    step = max(int(lead.metadata["step"]), 1)
    own = {
        "expert": {**tree["expert"], "_target_": "ldm.diffusion.experts.Expert", **WHOLE_NOISE},
        "conditioner": paths_of(tree.get("conditioner"), lead.run),
        "first_stage": first_stage_of(lead.run),
        "branch": None, "ema": None, "overwrite": False, "max_steps": step,
        "run": out.name, "runs_dir": str(out.parent),
    }  # fmt: skip
    about = {"intervals": WHOLE, "latent": lead.metadata["latent"]}
    with held(out, "merging into"):
        run = Run(out, {**tree, **own})
        run.lineage = {"run": out.name, "parent": None, "code_version": code_version()}
        run.begin()
        weights.save(out / "weights", step, {"raw": state}, {"samples_seen": lead.metadata["samples_seen"], **about})
        save_branch_point(out, step, about, state, None)
    return run
