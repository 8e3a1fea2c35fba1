"""Loads what a path holds: a run by its task's kind, a manifest by the kind it declares."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ldm.asked import there
from ldm.build import Parts, kind_of, load_first_stage
from ldm.config import load_plain, load_tree
from ldm.data.module import ShardData
from ldm.drawer import Drawer
from ldm.ensemble import KIND, lead_of, load_ensemble, read_members
from ldm.errors import UserError
from ldm.first_stage.first_stage import Identity
from ldm.model import load_classifier, load_model, own_first_stage

# Task.kind -> its loader: (path, first_stage or None, ema) -> what the run yields.
RUNS: dict[str, Callable[..., Any]] = {
    "first_stage": lambda path, first_stage, ema: load_first_stage(path, ema),
    "diffusion": load_model,
    "classifier": lambda path, first_stage, ema: load_classifier(path, _latents_of(path, first_stage), ema),
}
# The values of a manifest's `kind`.
MANIFESTS = {KIND: load_ensemble}


def load(path: str | Path, first_stage: str | None = None, ema: str = "ema", residency: str | None = None) -> Any:
    """What a run's folder, one of its weights files, or a manifest (.yaml) yields.

    A Drawer of a diffusion run or an ensemble (ldm.drawer), a FirstStage, a NoisyClassifier. `first_stage` says where
    the first stage of a model lies now, if it moved. `ema` chooses among a run's averages of its weights: ``ema``,
    ``raw``, or a relative length such as ``0.05``. `residency` says where an ensemble's members are while it samples:
    ``all``, ``one`` or ``disk`` (residency.py); None is what its manifest says. Raises ValueError naming what is wrong
    with it.
    """
    path = there(path)
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
    if path.suffix == ".yaml":
        return _load_manifest(path, first_stage, ema, residency)
    return load_model(path, first_stage, ema)


def check_draws(path: str | Path) -> None:
    """Raises UserError for a path whose tree says that `load_drawer` would refuse it; no weights are read."""
    path = there(path)
    if path.suffix == ".yaml":
        _manifest_kind(path)
    elif _kind(path) != "diffusion":
        raise UserError(f"{path}: a {_kind(path).replace('_', ' ')}, which draws no images")


def trained_on(path: str | Path) -> ShardData | None:
    """The data of a run, or of an ensemble's member for the highest noise, as its saved tree says; no weights are read.

    None for a run without a tree, which its loader refuses. Raises ValueError for what is no manifest.
    """
    path = there(path)
    file = lead_of(read_members(path)).file if path.suffix == ".yaml" else path
    config = _run_of(file) / "config.yaml"
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
    return MANIFESTS[_manifest_kind(path)](path, first_stage, residency)


def _manifest_kind(path: Path) -> str:
    kind = load_plain(path, "an ensemble's manifest").get("kind", KIND)
    if kind not in MANIFESTS:
        raise UserError(f"{path}: kind {kind!r} is not known here; there are {', '.join(MANIFESTS)}")
    return kind
