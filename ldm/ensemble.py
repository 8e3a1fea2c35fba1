"""Experts sampled as one model: a manifest of members with their cuts, parents and hashes, and the model made of them.

Members tile the noise axis: each serves the intervals it was trained for; one member trained on all of the noise may
serve whatever the others leave.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ldm.build import Parts
from ldm.checkpoint.weights import Weights
from ldm.checkpoint.weights import load as load_weights
from ldm.compatibility import check_members, names_of
from ldm.conditioners.base import Conditioners
from ldm.conditioners.frozen import FrozenEncoder
from ldm.config import dump, load_plain, load_tree
from ldm.data.seals import SEAL, check_seal, seal_of
from ldm.diffusion.experts import Interval, check_cover, owner_of, subtract
from ldm.ensemble_model import Ensemble
from ldm.errors import UserError
from ldm.files import read_json, write_text
from ldm.first_stage.spec import LatentSpec
from ldm.model import load_model
from ldm.places import found, paths_of, relative
from ldm.residency import residency_of

RESIDENCY, NEWEST = "residency", "newest"
KIND = "experts"  # of a manifest; one that says none is of these
WHOLE: list[Interval] = [(0.0, math.inf)]


def write_manifest(
    path: Path, runs: list[Path], residency: str | None = None, follow: str | None = None
) -> dict[str, Any]:
    """Write the manifest of `runs` to `path`. Raises ValueError naming a gap, an overlap or a misfit.

    `residency` is what it says of where its members are (residency.py). Members are the weights that they have now, by
    their hashes, or where they `follow` the ``newest``, the last that their runs have when the ensemble is loaded.
    """
    residency_of(residency)
    _check_follow(follow, f"follow={follow}")
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
    names, latents = names_of(member.run for member in weights), [member.metadata["latent"] for member in weights]
    _check_first_stages(names, [LatentSpec.from_dict(latent) for latent in latents])
    trees = [load_tree(member.run / "config.yaml") for member in weights]
    trees = [{**t, "conditioner": paths_of(t.get("conditioner"), m.run)} for t, m in zip(trees, weights, strict=True)]
    check_members(names, trees)
    _check_encoders_of(names, trees)
    served = share(trained)
    check_cover(served)
    manifest = {
        "kind": KIND,
        "first_stage": latents[0]["fingerprint"],
        **({"follow": follow} if follow else {}),
        **({RESIDENCY: residency} if residency else {}),
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
    """The part that must not be edited: everything but the members' paths and names, and where these are held."""
    members = [{key: value for key, value in m.items() if key != "run"} for m in manifest["members"]]
    return {**{key: value for key, value in manifest.items() if key != RESIDENCY}, "members": members}


def _check_follow(follow: Any, said: str) -> None:
    if follow not in (None, NEWEST):
        raise UserError(f"{said}: members are the weights of now (leave it out), or follow the {NEWEST}")


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
    """A member in a manifest: its weights file, the file's sha256, the noise it serves. One that follows its run's
    newest weights has the run's folder, and no sha256.
    """

    file: Path
    digest: str | None
    intervals: list[Interval]


def read_members(path: Path) -> list[Member]:
    """The members that a manifest names, one at least. Raises ValueError if it is no manifest, edited or damaged."""
    try:
        manifest = load_plain(path, "an ensemble's manifest")
        sealed_part = _sealed_part(manifest)
        _check_follow(manifest.get("follow"), f"{path}: follow={manifest.get('follow')}")
        follows = manifest.get("follow") == NEWEST
        members = []
        for m in manifest["members"]:
            run, file, digest = found(m["run"], path.resolve().parent), Path(m["weights"]).name, str(m["sha256"])
            intervals = [(float(lo), float(hi)) for lo, hi in m["intervals"]]
            members.append(
                Member(run, None, intervals) if follows else Member(run / "weights" / file, digest, intervals)
            )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: not an ensemble's manifest (scripts/ensemble.py writes one)") from error
    check_seal(sealed_part, path)
    if not members:
        raise UserError(f"{path}: names no members")
    return members


def lead_of(members: Sequence[Member]) -> Member:
    """The member for the highest noise, whose recipe and data are the ensemble's (Ensemble.data)."""
    return members[owner_of([member.intervals for member in members])(math.inf)]


def check_member(member: Member, found: Weights, path: Path) -> None:
    """Raises ValueError if the weights are not those that the manifest at `path` was written for, or not trained for
    the noise it gives them.
    """
    if member.digest is not None and found.digest != member.digest:
        raise UserError(f"{member.file}: not the weights {path} was written for; write the manifest anew")
    trained = found.metadata.get("intervals") or []
    if not all(any(a <= low and high <= b for a, b in trained) for low, high in member.intervals):
        raise UserError(
            f"{path}: gives {found.run.name} the noise {member.intervals}, but it was trained for {trained}; "
            "write the manifest anew (scripts/ensemble.py)"
        )


def load_ensemble(path: Path, first_stage: str | None = None, residency: str | None = None) -> Ensemble:
    """The model a manifest describes. Raises ValueError if a member's weights are not those it was written for.

    `residency` says where its members are (residency.py), None being what the manifest says, or on the device.
    """
    models, members = [], read_members(path)
    own = load_plain(path, "an ensemble's manifest").get(RESIDENCY)
    holder = residency_of(own, f"{path}: {RESIDENCY}") if residency is None else residency_of(residency)
    for member in members:
        model = load_model(member.file, first_stage)
        check_member(member, model.weights[0], path)
        models.append(holder.hold(model))
    names = names_of(model.weights[0].run for model in models)
    check_members(names, [model.parts.tree for model in models])
    _check_first_stages(names, [model.first_stage.spec for model in models])
    _check_encoders(names, [model.conditioner for model in models])
    return Ensemble(path.stem, models, [member.intervals for member in members], holder)


def _check_first_stages(names: Sequence[str], specs: Sequence[LatentSpec]) -> None:
    """Raises ValueError naming two members that live in different latent spaces."""
    for name, spec in zip(names[1:], specs[1:], strict=True):
        try:
            specs[0].check(spec)
        except ValueError as error:
            raise UserError(f"members: {names[0]} and {name} have different first stages; {error}") from error


def _check_encoders(names: Sequence[str], conditioners: Sequence[Conditioners]) -> None:
    """Raises ValueError naming two members that use different frozen encoders for a condition, whatever the paths."""
    seen: dict[str, tuple[str, FrozenEncoder]] = {}
    for member, conditioner in zip(names, conditioners, strict=True):
        for name, encoder in conditioner.encoders().items():
            first, known = seen.setdefault(name, (member, encoder))
            if encoder is not known and encoder.digest != known.digest:
                raise UserError(f"members: conditioner.{name} of {first} and {member} are different encoders")


def _check_encoders_of(names: Sequence[str], trees: Sequence[dict[str, Any]]) -> None:
    """The same, told from their trees: what lies in one folder is one encoder, and only others are read."""
    places: dict[str, set[str]] = {}
    for tree in trees:
        for name, part in (tree["conditioner"] or {}).items():
            places.setdefault(name, set()).add(str(part.get("path")))
    if any(len(found) > 1 for found in places.values()):
        _check_encoders(names, [Parts(tree)["conditioner"] for tree in trees])


def _parent(run: Path, folder: Path) -> dict[str, Any] | None:
    """A member's parent from its lineage, with the checkpoint's path relative to `folder`."""
    path = run / "lineage.json"
    parent = read_json(path).get("parent") if path.exists() else None
    if not parent:
        return None
    return {**parent, "checkpoint": relative(found(parent["checkpoint"], run), folder)}
