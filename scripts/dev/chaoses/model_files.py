"""What comes with a model: its tree, weights, lineage and checkpoints, an ensemble's manifest, published files."""

import io
import json
import random
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save as tensors_of
from untrained import untrained_run

from chaoses import mutations as spoil
from chaoses.file_kinds import Kind, scratch
from ldm.checkpoint import resume
from ldm.config import load_tree
from ldm.convert import foreign_file
from ldm.ensemble import load_ensemble, write_manifest
from ldm.files import sha256
from ldm.run import load, open_run


@cache
def _run() -> Path:
    return untrained_run(scratch("run") / "run")


def _copied(folder: Path, name: str, content: bytes) -> Path:
    """The untrained run with one corrupted file; hashes of weights are updated to match."""
    run = folder / "run"
    for path in _run().rglob("*"):
        if path.is_file():
            copy = run / path.relative_to(_run())
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content if path.name == name else path.read_bytes())
    if name.endswith(".safetensors"):
        description = run / "weights" / "step_00000001.json"
        told = json.loads(description.read_text())
        kind = name.split(".")[1]
        told["sha256"][kind] = sha256(run / "weights" / name)
        description.write_text(json.dumps(told))
    return run


def _read_run(name: str, folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    model = load(_copied(folder, name, content))
    sums = [float(value.sum()) for network in model.networks for value in network.state_dict().values()]
    return [] if np.isfinite(sums).all() else ["weights that are not finite were taken"]


def _of_run(name: str) -> Callable[[random.Random], bytes]:
    return lambda rng: next(_run().rglob(name)).read_bytes()


def _read_ensemble(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    (folder / "e.yaml").write_bytes(content)
    load_ensemble(folder / "e.yaml")
    return []


@cache
def _ensemble() -> bytes:
    path = scratch("ensemble") / "e.yaml"
    write_manifest(path, [_run()])
    return path.read_bytes()


def yaml_tree(content: bytes, rng: random.Random) -> bytes:
    """YAML that is still YAML, of another shape."""
    return yaml.safe_dump(spoil.tree(yaml.safe_load(content), rng)).encode()


YAML = (*spoil.TEXT, yaml_tree, yaml_tree, yaml_tree, yaml_tree)


@cache
def _checkpoint() -> Path:
    state = {"trained": {"w": torch.ones(50)}, "step": 1, "names": ["a", {"b": 2}]}
    return resume.save(scratch("checkpoint"), 1, state, {"step": 1, "samples_seen": 4})


def _read_checkpoint(name: str, folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    """Read a checkpoint whose hashes match, as an attacker would write it; a corrupted manifest is left as it is."""
    target = folder / _checkpoint().name
    target.mkdir()
    for path in _checkpoint().iterdir():
        (target / path.name).write_bytes(content if path.name == name else path.read_bytes())
    if name != "manifest.json":
        manifest = json.loads((target / "manifest.json").read_text())
        manifest["files"][name] = sha256(target / name)
        (target / "manifest.json").write_text(resume._text(manifest))
    resume.load(target)
    return []


def _read_lineage(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    tree = _tree()
    run = folder / "r"
    run.mkdir()
    (run / "lineage.json").write_bytes(content)
    (run / "config.yaml").write_bytes(_of_run("config.yaml")(random.Random(0)))
    open_run({**tree, "runs_dir": str(folder), "overwrite": False}, "r")
    return []


@cache
def _tree() -> dict[str, Any]:
    return load_tree(_run() / "config.yaml")


def _lineage(rng: random.Random) -> bytes:
    parent = {"run": "p", "checkpoint": "runs/p/checkpoints/step_00000001.ckpt", "sha256": "0", "samples_seen_total": 4}
    return json.dumps({"run": "r", "wandb_id": "r-0", "parent": parent, "finished_step": 1}).encode()


def _read_foreign(name: str, folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    (folder / name).write_bytes(content)
    foreign_file.read(folder / name)
    return []


@cache
def _pickled() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"encoder.w": torch.ones(3, 3)}, "global_step": 3}, file)
    return file.getvalue()


def _tensors(rng: random.Random) -> bytes:
    return tensors_of({"encoder.w": torch.ones(3, 3), "b": torch.zeros(2, dtype=torch.float16)}, {"format": "pt"})


KINDS: dict[str, Kind] = {
    "config.yaml": Kind(_of_run("config.yaml"), YAML, partial(_read_run, "config.yaml")),
    "ensemble": Kind(lambda rng: _ensemble(), YAML, _read_ensemble),
    "description of weights": Kind(_of_run("step_00000001.json"), spoil.JSON, partial(_read_run, "step_00000001.json")),
    "weights": Kind(
        _of_run("step_00000001.ema.safetensors"), spoil.TENSORS, partial(_read_run, "step_00000001.ema.safetensors")
    ),
    "lineage": Kind(_lineage, spoil.JSON, _read_lineage),
    **{
        f"checkpoint's {name}": Kind(
            lambda rng, name=name: (_checkpoint() / name).read_bytes(), mutations, partial(_read_checkpoint, name)
        )
        for name, mutations in (("state.pt", spoil.BYTES), ("state.json", spoil.JSON), ("manifest.json", spoil.JSON))
    },
    "published pickle": Kind(lambda rng: _pickled(), spoil.BYTES, partial(_read_foreign, "x.ckpt")),
    "published tensors": Kind(_tensors, spoil.TENSORS, partial(_read_foreign, "x.safetensors")),
}
MADE_ONCE = (_run, _ensemble, _checkpoint, _pickled, _tree)
