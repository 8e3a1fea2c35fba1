"""Weights for use: ``weights/step_00001000.{ema,raw}.safetensors`` and a JSON beside them with what they are.

Further averages are further kinds, such as ``ema_0.1``; snapshots of averages, never deleted, are such sets too.

The JSON carries the sha256 of each file, the run it is of, a seal over itself and, for a first stage, its latent
statistics, so that weights never travel without the numbers needed to use them.
"""

import dataclasses
import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ldm.checkpoint import base, identity
from ldm.checkpoint.finite import check_finite
from ldm.checkpoint.rows import placed
from ldm.data.seals import check_seal, sealed
from ldm.errors import UserError
from ldm.files import discard, read_json, replace, sha256, sweep, write_json

log = logging.getLogger(__name__)
NAMED = 12  # keys that an error about a checkpoint names of each kind
PATTERN = re.compile(r"step_(\d{8,})\.json")


# What a description may say besides, and how.
KINDS = {"base": str, "latent": dict, "intervals": list, "samples_seen": int, "validation": dict, "ema_profiles": dict}


@dataclass(frozen=True)
class Weights:
    """One state dict with the run it belongs to. `digest` is the file's sha256, `metadata` the JSON beside it."""

    run: Path
    path: Path
    state: dict[str, torch.Tensor]
    digest: str
    metadata: dict[str, Any]

    def without_values(self) -> "Weights":
        """The same with shapes and types in the place of its tensors."""
        return dataclasses.replace(self, state={name: tensor.to("meta") for name, tensor in self.state.items()})


def save(folder: Path, step: int, states: dict[str, dict[str, torch.Tensor]], metadata: dict[str, Any]) -> None:
    """Write one safetensors file per kind (``ema``, ``raw``), then the JSON that makes them a set.

    Of a run that has frozen weights they hold the others, and `metadata` the digest of its ``base`` (base.py).
    Sets of later steps are deleted: they are from before the run went back to an earlier checkpoint.
    """
    digests = {}
    for kind, state in states.items():
        path = folder / f"step_{step:08d}.{kind}.safetensors"
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        replace(path, lambda temporary, plain=plain: save_file(plain, temporary))  # type: ignore[misc]  # a lambda with a default
        digests[kind] = sha256(path)
    description = {"step": step, "sha256": digests, **metadata, **identity.stamp(folder.parent)}
    write_json(folder / f"step_{step:08d}.json", sealed(description))
    _delete(description for description in _sets(folder) if _step(description) > step)


def amend(folder: Path, metadata: dict[str, Any]) -> None:
    """Add facts to the newest set's JSON. Raises ValueError if that was edited or damaged."""
    path = _sets(folder)[0]
    write_json(path, sealed({**describe(path), **metadata}))


def retain(
    folder: Path, keep: int, every_steps: int | None = None, best: str | None = None, largest: bool = False
) -> None:
    """Delete leftovers of interrupted writes, and all sets but the newest `keep`, every `every_steps`, and the `best`.

    The best has the smallest value (or the `largest`) of that name in ``validation`` of its JSON, the newest of equals.
    """
    sweep(folder)
    for file in folder.glob("step_*.safetensors"):
        if not file.with_name(f"{file.name.partition('.')[0]}.json").exists():
            discard(file)
    sets = _sets(folder)
    scores = {description: score for description in sets if (score := _score(description, best)) is not None}
    best_set = (max if largest else min)(scores, key=scores.__getitem__, default=None)
    _delete(d for d in sets[keep:] if d != best_set and (not every_steps or _step(d) % every_steps))


def _score(description: Path, name: str | None) -> float | None:
    """The held-out value of this name that a set's JSON records; NaN is no value."""
    try:
        value = float(read_json(description)["validation"][name])
    except (ValueError, KeyError, TypeError):
        return None
    return None if math.isnan(value) else value


def load(path: Path, kind: str = "ema") -> Weights:
    """Weights of a run's folder (the newest whole ones), of one of its checkpoints, or of one ``.safetensors`` file.

    EMA by default, raw where the run kept no EMA. Raises ValueError if there are none, or all are damaged.
    """
    if path.suffix == ".safetensors":
        return read(path)
    run = path.parent.parent if path.suffix == ".ckpt" else path
    found = [run / "weights" / f"{path.stem}.json"] if path.suffix == ".ckpt" else _sets(run / "weights")
    if not found:
        began = (path / "config.yaml").exists()
        hint = "it has not finished a checkpoint yet" if began else "it is not a run's folder"
        raise UserError(f"{path}: no weights found; {hint}")
    for place, description in enumerate(found):
        file = description.with_suffix(f".{kind}.safetensors")
        try:
            if not file.exists() and description.exists() and kind in describe(description)["sha256"]:
                raise UserError(f"{file}: no such weights, which were kept; put them back, or ema=raw does without")
            return read(file if file.exists() else description.with_suffix(".raw.safetensors"))
        except ValueError as error:
            if place == len(found) - 1:
                raise
            log.warning("%s; using the weights before them", error)
    raise AssertionError("a set was read or the last error was raised")


def read(file: Path) -> Weights:
    """Read one file of a set, verified against the hash in the JSON beside it. Raises ValueError if it differs."""
    description = file.with_name(f"{file.name.split('.')[0]}.json")
    if not file.exists() or not description.exists():
        raise UserError(f"{file}: no such weights, or no {description.name} beside them")
    metadata = describe(description)
    recorded = metadata["sha256"].get(file.name.removeprefix(f"{description.stem}.").removesuffix(file.suffix))
    digest = sha256(file)
    if recorded != digest:
        raise UserError(f"{file}: damaged (its hash is not the one {description.name} records)")
    frozen = base.load(file.parent, metadata["base"], file) if metadata.get("base") else {}
    state = {**frozen, **read_tensors(file)}
    check_finite(state, file)
    return Weights(file.parent.parent, file, state, digest, metadata)


def describe(description: Path) -> dict[str, Any]:
    """The JSON of a set. Raises ValueError if it was edited or damaged, or is of another step or run."""
    try:
        metadata = read_json(description)
    except ValueError as error:
        raise UserError(f"{description}: cannot be read as the description of weights") from error
    check_seal(metadata, description)
    if not isinstance(metadata.get("sha256"), dict) or type(metadata.get("step")) is not int:
        raise UserError(f"{description}: cannot be read as the description of weights")
    for name, kind in KINDS.items():
        if metadata.get(name) is not None and type(metadata[name]) is not kind:
            raise UserError(f"{description}: {name} is no {kind.__name__}, as it is in the description of weights")
    if not all(_is_interval(interval) for interval in metadata.get("intervals") or ()):
        raise UserError(f"{description}: intervals are not pairs of numbers")
    if PATTERN.fullmatch(description.name) and metadata["step"] != _step(description):
        raise UserError(f"{description}: renamed, it says that it is of step {metadata['step']}")
    run = description.absolute().parent.parent
    problem = identity.foreign(metadata, run)
    if problem:
        raise UserError(f"{description}: {problem}")
    if edited := identity.edited_config(run):
        log.warning("%s; what its keys say now is used", edited)
    return metadata


def validation(folder: Path, step: int) -> dict[str, float]:
    """The held-out values that the JSON of a step's set records; {} if there is none or, as is said, it is damaged."""
    description = folder / f"step_{step:08d}.json"
    if not description.exists():
        return {}
    try:
        return describe(description).get("validation") or {}
    except ValueError as error:
        log.warning("%s; its held-out values are lost", error)
        return {}


def described(checkpoint: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """The JSON of the set written with a checkpoint, and its tensors on the meta device; None if it was deleted."""
    description = checkpoint.parent.parent / "weights" / f"{checkpoint.stem}.json"
    file = description.with_suffix(".raw.safetensors")
    if not description.exists() or not file.exists():
        return None
    metadata = read_json(description)
    shapes: dict[str, Any] = {}
    for path in (file, *([file.with_name(base.NAME)] if metadata.get("base") else [])):
        with safe_open(path, "pt") as tensors:
            shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    return metadata, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of an untrusted safetensors file. Raises ValueError if it is not one."""
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file}: not a whole safetensors file ({error})") from error


def load_strict(module: torch.nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Load `state` into `module`, every key and shape. Raises ValueError naming what does not fit."""
    own = module.state_dict()
    check_fit(own, state, source)
    module.load_state_dict({name: placed(tensor, own[name]) for name, tensor in state.items()})


def check_fit(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], source: str) -> None:
    """Raises ValueError unless `state` has the names and shapes of `own`, naming up to `NAMED` of each kind."""
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [f"{n} is {tuple(state[n].shape)}, not {tuple(own[n].shape)}" for n in own.keys() & state.keys()
              if own[n].shape != state[n].shape]  # fmt: skip
    found = ((missing, "keys missing"), (extra, "keys too many"), (sorted(shapes), "wrong shapes"))
    problems = [
        f"{len(names)} {what} ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"
        for names, what in found
        if names
    ]
    if problems:
        raise UserError(f"{source} does not fit this model: {'; '.join(problems)}")


def newest(run: Path) -> Path:
    """The JSON of the newest weights in a run's folder. Raises FileNotFoundError if there are none."""
    found = _sets(run / "weights")
    if not found:
        raise FileNotFoundError(f"{run}: no weights")
    return found[0]


def steps(run: Path) -> dict[int, Path]:
    """The JSON of each set of weights in a run's folder, by its step, oldest first."""
    return {_step(description): description for description in reversed(_sets(run / "weights"))}


def _is_interval(value: Any) -> bool:
    return isinstance(value, list) and [type(end) in (int, float) for end in value] == [True, True]


def _step(description: Path) -> int:
    return int(PATTERN.fullmatch(description.name)[1])


def _sets(folder: Path) -> list[Path]:
    """Descriptions of sets of weights, newest first."""
    return sorted((p for p in folder.glob("step_*.json") if PATTERN.fullmatch(p.name)), key=_step, reverse=True)


def _delete(descriptions: Iterable[Path]) -> None:
    for description in descriptions:
        description.unlink()
        for path in description.parent.glob(f"{description.stem}.*.safetensors"):
            path.unlink()
