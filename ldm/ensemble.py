"""Experts sampled as one model: a manifest of members with their cuts, parents and hashes, and the model made of them.

Members tile the noise axis: each serves the intervals it was trained for; one member trained on all of the noise may
serve whatever the others leave.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.seals import SEAL, check_seal, seal_of
from ldm.build import Parts
from ldm.checkpoint.weights import Weights
from ldm.checkpoint.weights import load as load_weights
from ldm.compatibility import check_members, names_of
from ldm.config import dump, load_plain, load_tree
from ldm.diffusion.experts import ExpertDenoiser, Interval, check_cover, subtract
from ldm.errors import UserError
from ldm.files import read_json, write_text
from ldm.model import Model, load_model
from ldm.places import found, relative

WHOLE: list[Interval] = [(0.0, math.inf)]


def write_manifest(path: Path, runs: list[Path]) -> dict[str, Any]:
    """Write the manifest of `runs` to `path`. Raises ValueError naming a gap, an overlap or a misfit."""
    if not runs:
        raise UserError("members: name at least one run")
    if path.suffix != ".yaml" or path.is_dir():
        raise UserError(f"out={path}: a manifest is a file that ends in .yaml")
    if path.exists() and "members" not in load_plain(path, "an ensemble's manifest"):
        raise UserError(f"out={path}: something else than an ensemble's manifest is there; give another name")
    weights = [load_weights(run) for run in runs]
    for member in weights:
        if "intervals" not in member.metadata:
            raise UserError(f"members: {member.run} has not finished training, or is not a diffusion run")
    trained = [[tuple(interval) for interval in member.metadata["intervals"]] for member in weights]
    latents = [member.metadata["latent"]["fingerprint"] for member in weights]
    if len(set(latents)) > 1:
        raise UserError(f"members: their first stages differ ({', '.join(sorted(set(latents)))})")
    trees = [load_tree(member.run / "config.yaml") for member in weights]
    check_members(names_of(member.run for member in weights), trees, [Parts(tree)["schedule"] for tree in trees])
    served = share(trained)
    check_cover(served)
    manifest = {
        "first_stage": latents[0],
        "members": [
            {
                "run": relative(member.run, path.parent),
                "weights": member.path.name,
                "sha256": member.digest,
                "intervals": [list(interval) for interval in intervals],
                "step": member.metadata["step"],
                "samples_seen": member.metadata["samples_seen"],
                "parent": _parent(member.run, path.parent),
            }
            for member, intervals in zip(weights, served, strict=True)
        ],
    }
    manifest[SEAL] = seal_of(_sealed_part(manifest))
    write_text(path, dump(manifest))
    return manifest


def _sealed_part(manifest: dict[str, Any]) -> dict[str, Any]:
    """What nobody may change by hand: all but where the members lie and what they were called."""
    members = [{key: value for key, value in m.items() if key != "run"} for m in manifest["members"]]
    return {**manifest, "members": members}


def share(trained: list[list[Interval]]) -> list[list[Interval]]:
    """Intervals each member serves: its own, or for one member trained on everything what the others leave."""
    whole = [place for place, intervals in enumerate(trained) if intervals == WHOLE]
    if len(whole) != 1 or len(trained) == 1:
        return trained
    left = WHOLE
    for place, intervals in enumerate(trained):
        for interval in intervals if place != whole[0] else ():
            left = subtract(left, interval)
    return [left if place == whole[0] else intervals for place, intervals in enumerate(trained)]


class Member(NamedTuple):
    """What a manifest says of a member: its file of weights, their sha256, the noise it serves."""

    file: Path
    digest: str
    intervals: list[Interval]


def read_members(path: Path) -> list[Member]:
    """The members that a manifest names. Raises ValueError if it is none, or is not as it was written."""
    try:
        manifest = load_plain(path, "an ensemble's manifest")
        sealed_part = _sealed_part(manifest)
        members = [
            Member(
                found(m["run"], path.resolve().parent) / "weights" / Path(m["weights"]).name,
                m["sha256"],
                [(float(lo), float(hi)) for lo, hi in m["intervals"]],
            )
            for m in manifest["members"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: not an ensemble's manifest (scripts/ensemble.py writes one)") from error
    check_seal(sealed_part, path)
    return members


def check_member(member: Member, found: Weights, path: Path) -> None:
    """Raises ValueError if the weights are not those that the manifest at `path` was written for, or not trained for
    the noise it gives them.
    """
    if found.digest != member.digest:
        raise UserError(f"{member.file}: not the weights {path} was written for; write the manifest anew")
    trained = found.metadata.get("intervals") or []
    if not all(any(a <= low and high <= b for a, b in trained) for low, high in member.intervals):
        raise UserError(
            f"{path}: gives {found.run.name} the noise {member.intervals}, but it was trained for {trained}; "
            "write the manifest anew (scripts/ensemble.py)"
        )


def load_ensemble(path: Path, first_stage: str | None = None) -> Model:
    """The model a manifest describes. Raises ValueError if a member's weights are not those it was written for."""
    models = []
    members = read_members(path)
    for member in members:
        model = load_model(member.file, first_stage)
        check_member(member, model.weights[0], path)
        models.append(model)
    if not models:
        raise UserError(f"{path}: names no members")
    first = models[0]
    trees = [model.parts.tree for model in models]
    check_members(names_of(model.weights[0].run for model in models), trees, [model.schedule for model in models])
    for model in models[1:]:
        model.first_stage.spec.check(first.first_stage.spec)
        _check_encoders(first, model)
        if not _same(first.conditioner.state_dict(), model.conditioner.state_dict()):
            raise UserError(
                f"{path}: {first.name} and {model.name} have different conditioner weights; an ensemble encodes each "
                "condition once, so its members need a conditioner that is frozen"
            )
    for name, part in first.conditioner.parts.items():  # a null serves if every member has seen it
        part.drop_prob = min(model.conditioner.parts[name].drop_prob for model in models)
    denoiser = ExpertDenoiser([model.denoiser for model in models], [member.intervals for member in members])
    networks = [model.networks[0] for model in models]
    weights = [model.weights[0] for model in models]
    return Model(
        path.stem, first.first_stage, first.conditioner, denoiser, first.schedule, first.parts, networks, weights
    )


def _check_encoders(first: Model, model: Model) -> None:
    """Raises ValueError if two members see a condition through other frozen encoders, wherever these lie."""
    encoders = model.conditioner.encoders()
    for name, encoder in first.conditioner.encoders().items():
        other = encoders[name]
        if encoder is not other and encoder.digest != other.digest:
            raise UserError(f"members: conditioner.{name} of {first.name} and {model.name} are different encoders")


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _parent(run: Path, folder: Path) -> dict[str, Any] | None:
    """What a member's lineage says of its parent, whose checkpoint is told as a file in `folder` tells it."""
    path = run / "lineage.json"
    parent = read_json(path).get("parent") if path.exists() else None
    if not parent:
        return None
    return {**parent, "checkpoint": relative(found(parent["checkpoint"], run), folder)}
