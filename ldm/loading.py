"""Loads what a path holds: a run by its task's kind, a manifest by the kind it declares."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import nn

from ldm.asked import there
from ldm.build import Parts, kind_of, load_first_stage
from ldm.cascade.data import data_of
from ldm.cascade.manifest import KIND as CASCADE
from ldm.cascade.manifest import load_cascade, read_manifest
from ldm.config import load_plain, load_tree
from ldm.data.module import ShardData
from ldm.drawer import Drawer
from ldm.ensemble import KIND as EXPERTS
from ldm.ensemble import lead_of, load_ensemble, read_members
from ldm.errors import UserError
from ldm.first_stage.first_stage import Identity
from ldm.model import load_classifier, load_model, own_first_stage
from ldm.residency import residency_of

P = TypeVar("P", str, Path)
# Task.kind -> its loader: (path, first_stage or None, ema) -> what the run yields.
RUNS: dict[str, Callable[..., Any]] = {
    "first_stage": lambda path, first_stage, ema: load_first_stage(path, ema),
    "diffusion": load_model,
    "classifier": lambda path, first_stage, ema: load_classifier(path, _latents_of(path, first_stage), ema),
}


def load(path: str | Path, first_stage: str | None = None, ema: str = "ema", residency: str | None = None) -> Any:
    """What a run's folder, one of its weights files, or a manifest (.yaml) yields.

    A Drawer of a diffusion run, an ensemble or a cascade (ldm.drawer), a FirstStage, a NoisyClassifier. `first_stage`
    says where the first stage of a model lies now, if it moved. `ema` chooses among a run's averages of its weights:
    ``ema``, ``raw``, or a relative length such as ``0.05``. `residency` says where an ensemble's members are while it
    samples, those of a cascade's stages too: ``all``, ``one`` or ``disk`` (residency.py); None is what its manifest
    says. Raises ValueError naming what is wrong with it, and for ``one`` or ``disk`` of what has no members.
    """
    path = there(path)
    residency = residencies([path], residency)[path]
    if path.suffix == ".yaml":
        return _load_manifest(path, first_stage, ema, residency)
    kind = _kind(path)
    if kind not in RUNS:
        raise UserError(f"{path}: a {kind}, which nothing here loads; there are {', '.join(RUNS)}")
    return RUNS[kind](path, first_stage, ema)


def load_drawer(
    path: str | Path, first_stage: str | None = None, ema: str = "ema", residency: str | None = None
) -> Drawer:
    """What draws images at a path: see `load`. Raises ValueError for a run that yields something else."""
    path = there(path)
    residency = residencies([path], residency)[path]
    if path.suffix == ".yaml":
        return _load_manifest(path, first_stage, ema, residency)
    return load_model(path, first_stage, ema)


def residencies(paths: Sequence[P], residency: str | None) -> dict[P, str | None]:
    """The `residency` of each of several models: None, its manifest's word, for one that has no members which could
    come and go.

    Raises UserError for one that there is not, and for ``one`` or ``disk`` where no model has any.
    """
    residency_of(residency)
    having = {path: _has_members(there(path)) for path in paths}
    if residency not in (None, "all") and not any(having.values()):
        names = ", ".join(map(str, paths))
        raise UserError(
            f"residency={residency}: is of an ensemble's members, which come and go; {names} has none: leave it out"
        )
    return {path: residency if own else None for path, own in having.items()}


def averages(paths: Sequence[P], ema: str) -> dict[P, str]:
    """The average of the weights, `ema`, of each of several models: the runs among them, as manifests name weights.

    Raises UserError for one that is asked for where no model is a run.
    """
    runs = {path: there(path).suffix != ".yaml" for path in paths}
    if ema != "ema" and not any(runs.values()):
        names = ", ".join(map(str, paths))
        raise UserError(f"ema={ema}: chooses among the weights of a run, and {names} names its members'")
    return {path: ema if own else "ema" for path, own in runs.items()}


def _has_members(path: Path) -> bool:
    """Whether a path holds an ensemble, or a cascade with one as a stage."""
    return path.suffix == ".yaml" and MANIFESTS[manifest_kind(path)].has_members(path)


def check_draws(path: str | Path) -> None:
    """Raises UserError for a path whose tree says that `load_drawer` would refuse it; no weights are read."""
    path = there(path)
    if path.suffix == ".yaml":
        manifest_kind(path)
    elif _kind(path) != "diffusion":
        raise UserError(f"{path}: a {_kind(path).replace('_', ' ')}, which draws no images")


def trained_on(path: str | Path) -> ShardData | None:
    """The data of a run, of an ensemble's member for the highest noise, or of a cascade, as saved trees say; no weights
    are read.

    None for a run without a tree, which its loader refuses. Raises ValueError for what is no manifest.
    """
    path = there(path)
    if path.suffix == ".yaml":
        return MANIFESTS[manifest_kind(path)].trained_on(path)
    config = _run_of(path) / "config.yaml"
    return Parts(load_tree(config))["data"] if config.exists() else None


def _kind(path: Path) -> str:
    """The kind of a run; that of models for one without a tree, whose loader names the missing file."""
    config = _run_of(path) / "config.yaml"
    return kind_of(load_tree(config)) if config.exists() else "diffusion"


def _run_of(path: Path) -> Path:
    """The folder of a run, one of its checkpoints or its weights files."""
    return path.parent.parent if path.suffix in (".safetensors", ".ckpt") else path


def _latents_of(path: Path, first_stage: str | None) -> nn.Module:
    """The first stage that a run was trained on."""
    run = _run_of(path)
    if not load_tree(run / "config.yaml").get("first_stage"):
        return Identity()
    return load_first_stage(Path(first_stage or own_first_stage(run, path)))


def _load_manifest(path: Path, first_stage: str | None, ema: str, residency: str | None) -> Drawer:
    if ema != "ema":
        raise UserError(f"ema={ema}: {path} names its members' weights; ema= chooses among those of a run")
    return MANIFESTS[manifest_kind(path)].load(path, first_stage, residency)


def manifest_kind(path: Path) -> str:
    """The kind that a manifest says it is of. Raises ValueError for one that is not known here."""
    kind = load_plain(path, "a manifest").get("kind", EXPERTS)
    if not isinstance(kind, str) or kind not in MANIFESTS:
        raise UserError(f"{path}: kind {str(kind)[:80]!r} is not known here; there are {', '.join(MANIFESTS)}")
    return kind


def load_stage(path: Path, first_stage: str | None = None, residency: str | None = None) -> Drawer:
    """A stage of a cascade: a model, or an ensemble. Raises ValueError for another cascade."""
    if path.suffix == ".yaml" and manifest_kind(path) == CASCADE:
        raise UserError(f"stages: {path} is a cascade itself; name its stages")
    return load_drawer(path, first_stage, residency=residency if path.suffix == ".yaml" else None)


def _cascade(path: Path, first_stage: str | None, residency: str | None) -> Drawer:
    if first_stage is not None:
        raise UserError(
            f"first_stage={first_stage}: the stages of {path} have their own; write it anew with NAME.first_stage= for "
            "the stage called NAME"
        )
    return load_cascade(path, partial(load_stage, residency=residency))


def _cascade_data(path: Path) -> ShardData | None:
    entries, _ = read_manifest(path)
    datas = [trained_on(entry.path) for entry in entries if entry.path.exists()]
    there = [data for data in datas if data is not None]
    return data_of(there, [entry.factor for entry in entries]) if len(there) == len(entries) else None


def _has_experts(path: Path) -> bool:
    """Whether a stage of a cascade is an ensemble."""
    return any(_has_members(entry.path) for entry in read_manifest(path)[0])


class Manifest(NamedTuple):
    """How a kind of manifest is loaded: (path, first stage, residency) -> what draws; what that was trained on; whether
    members of it can come and go.
    """

    load: Callable[[Path, str | None, str | None], Drawer]
    trained_on: Callable[[Path], ShardData | None]
    has_members: Callable[[Path], bool]


# The values of a manifest's `kind`.
MANIFESTS = {
    EXPERTS: Manifest(load_ensemble, lambda path: trained_on(lead_of(read_members(path)).file), lambda path: True),
    CASCADE: Manifest(_cascade, _cascade_data, _has_experts),
}
