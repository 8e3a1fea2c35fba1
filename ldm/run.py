"""The run contract: one stable folder per run, its configuration, its lineage, resume or branch.

The same command again resumes; a changed key that would change the mathematics is refused by name.
"""

import os
import re
import secrets
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.checkpoint import resume
from ldm.compatibility import check_branch
from ldm.config import dump, load_tree
from ldm.ensemble import load_ensemble
from ldm.files import read_json, sha256, write_json, write_text
from ldm.model import Model, load_model
from ldm.redaction import redacted

# Keys (and everything below them) that a resumed run may change: they alter where and how fast it runs, not what.
FREE = (
    "trainer.accelerator trainer.devices trainer.num_nodes trainer.strategy logger callback max_steps overwrite "
    "runs_dir data.num_workers data.timeout_seconds data.memo_samples task.keep_latents task.compile "
    "network.checkpoint_activations autoencoder.checkpoint_activations num_steps sampler sigmas guidance run"
).split()


@dataclass
class Run:
    """A run's folder and what is known about it. `lineage` is the content of lineage.json."""

    folder: Path
    tree: dict[str, Any]
    lineage: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether the run has done the steps its tree asks for."""
        return self.lineage.get("finished_step", -1) >= self.tree["max_steps"]

    def begin(self) -> None:
        """Make the folder and write what is to be fitted; ``overwrite=true`` clears it first. Rank zero only."""
        if self.tree["overwrite"] and self.folder.exists():
            if not (self.folder / "config.yaml").exists():
                raise ValueError(f"overwrite=true: {self.folder} is not a run's folder; delete it yourself")
            aside = self.folder.with_name(f".overwritten-{os.getpid()}-{self.name}")
            shutil.rmtree(self.folder.replace(aside))  # never a part of the old run under its name
        write_text(self.folder / "config.yaml", dump(redacted({**self.tree, "overwrite": False})))
        self.record()

    def record(self, **facts: Any) -> None:
        """Add facts to the lineage, durably."""
        self.lineage.update(facts)
        write_json(self.folder / "lineage.json", redacted(self.lineage))


def open_run(tree: dict[str, Any], name: str) -> Run:
    """The run `name` as its folder stands, or a new one; nothing is written before `begin`.

    Raises ValueError naming the first key that differs from the run in the folder in a way that changes the result.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ValueError(f"run={name}: a run's name is made of letters, digits, '-', '_' and '.'")
    folder = Path(tree["runs_dir"]) / name
    config, lineage = folder / "config.yaml", folder / "lineage.json"
    wandb_id = f"{name}-{secrets.token_hex(4)}"
    if config.exists() and not tree["overwrite"]:
        check_unchanged(load_tree(config), tree, folder)
        if lineage.exists():
            return Run(folder, tree, _lineage(lineage, wandb_id))
    if tree["branch"]:
        check_branch(tree, _tree_of(branch_point(tree["branch"]), tree["branch"]), tree["branch"])
    parent = _parent(tree["branch"]) if tree["branch"] else None
    return Run(folder, tree, {"run": name, "wandb_id": wandb_id, "parent": parent, "code_version": code_version()})


def _lineage(path: Path, wandb_id: str) -> dict[str, Any]:
    """A folder's lineage; one without a W&B id gets `wandb_id`. Raises ValueError if it is no lineage of a run."""
    lineage = {"wandb_id": wandb_id, "parent": None, **read_json(path)}
    parent = lineage["parent"]
    sound = (
        isinstance(lineage["wandb_id"], str)
        and re.fullmatch(r"[\w.-]+", lineage["wandb_id"])
        and isinstance(lineage.get("finished_step", 0), int)
        and (parent is None or (isinstance(parent, dict) and isinstance(parent.get("checkpoint"), str)))
        and isinstance((parent or {}).get("samples_seen_total", 0), int)
    )
    if not sound:
        raise ValueError(f"{path}: not the lineage of a run; overwrite=true starts anew")
    return lineage


def is_rank_zero() -> bool:
    """Whether this process is the one that writes, before a process group exists."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"))


def check_unchanged(saved: dict[str, Any], tree: dict[str, Any], folder: Path) -> None:
    """Raises ValueError if `tree` differs from the `saved` one in a key that changes the mathematics."""
    before, now = _flat(saved), _flat(redacted(tree))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not any(key == free or key.startswith(f"{free}.") for free in FREE):
            raise ValueError(
                f"{key} is {now.get(key)!r}, but the run in {folder} was started with {before.get(key)!r}: "
                "give the new one its own folder with run=NAME, start from this one with branch=, or overwrite=true"
            )


def inherit(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """A branch takes its parent's first stage unless the tree names one; resumed, what it took when it began."""
    if tree["first_stage"] or not tree["branch"]:
        return tree
    own = Path(tree["runs_dir"]) / name / "config.yaml"
    known = (
        own if own.exists() and not tree["overwrite"] else branch_point(tree["branch"]).parent.parent / "config.yaml"
    )
    return {**tree, "first_stage": load_tree(known)["first_stage"]}


def branch_point(branch: str | None) -> Path | None:
    """The checkpoint folder a ``branch=`` names: a run's newest whole one, or the given one."""
    if not branch:
        return None
    path = Path(branch)
    if path.suffix == ".ckpt":
        problem = resume.damage(path)
        if problem:
            raise ValueError(f"branch={branch}: {problem}")
        return path
    found = resume.newest(path / "checkpoints") if path.is_dir() else None
    if found is None:
        raise ValueError(f"branch={branch}: no checkpoint there; name a run's folder or one of its checkpoints/*.ckpt")
    return found


def _tree_of(checkpoint: Path, branch: str) -> dict[str, Any]:
    """What a checkpoint was trained as. Raises ValueError if nothing tells."""
    config = checkpoint.parent.parent / "config.yaml"
    if not config.exists():
        raise ValueError(f"branch={branch}: no config.yaml beside its checkpoints, so nothing tells what they are")
    return load_tree(config)


def _parent(branch: str) -> dict[str, Any]:
    checkpoint = branch_point(branch)
    run_folder = checkpoint.parent.parent
    lineage_file = run_folder / "lineage.json"
    grand = _lineage(lineage_file, "none") if lineage_file.exists() else {}
    counters = read_json(checkpoint / "state.json")
    before = (grand.get("parent") or {}).get("samples_seen_total", 0)
    return {
        "run": run_folder.name,
        "checkpoint": str(checkpoint),
        "sha256": sha256(checkpoint / "manifest.json"),
        "samples_seen_total": before + counters["samples_seen"],
    }


def load(path: str | Path, first_stage: str | None = None, ema: str = "ema") -> Model:
    """A trained model, from a run's folder, one of its weights files, or an ensemble's manifest (.yaml).

    `ema` chooses among a run's averages of its weights: ``ema``, ``raw``, or a relative length such as ``0.05``.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"model={path}: no such run or manifest")
    if path.suffix != ".yaml":
        return load_model(path, first_stage, ema)
    if ema != "ema":
        raise ValueError(f"ema={ema}: {path} names its members' weights; ema= chooses among those of a run")
    return load_ensemble(path, first_stage)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {k: v for key, value in tree.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): tree}


def code_version() -> str:
    """The commit of the code, with a plus when the working tree differs; 'unknown' outside a checkout."""
    try:
        here = Path(__file__).resolve().parent
        describe = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(describe, cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
