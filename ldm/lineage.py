"""A run's origin, from its lineage.json: the checkpoint it was branched from, or the run that it is a copy of."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from ldm.checkpoint import identity, resume
from ldm.config import versions
from ldm.errors import UserError
from ldm.files import read_json, sha256
from ldm.places import digests, fingerprint, found, relative

NAME = "lineage.json"
RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def read_lineage(folder: Path, wandb_id: str) -> dict[str, Any]:
    """A folder's lineage; one without a W&B id gets `wandb_id`. Raises ValueError if it is no lineage of a run."""
    path = folder / NAME
    lineage = {"wandb_id": wandb_id, "parent": None, **identity.read_lineage(folder)}
    parent = lineage["parent"]
    valid = (
        isinstance(lineage["wandb_id"], str)
        and re.fullmatch(r"[\w.-]+", lineage["wandb_id"])
        and isinstance(lineage.get("finished_step", 0), int)
        and (parent is None or (isinstance(parent, dict) and isinstance(parent.get("checkpoint"), str)))
        and isinstance((parent or {}).get("samples_seen_total", 0), int)
    )
    if not valid:
        raise UserError(f"{path}: not the lineage of a run; overwrite=true starts anew")
    return lineage


def note_plugins(lineage: dict[str, Any], tree: dict[str, Any]) -> None:
    """Record in the lineage which plugins `tree` needs; report other versions, which may compute something else."""
    now = versions(tree)
    before = lineage.get("plugins", now)
    if before != now:
        print(f"{lineage.get('run')}: was trained with the plugins {before!r}, goes on with {now!r}")
    if now:
        lineage["plugins"] = now


def branch_point(branch: str | None) -> Path | None:
    """The checkpoint folder a ``branch=`` names: a run's newest whole one, or the given one."""
    if not branch:
        return None
    path = Path(branch).expanduser()
    if path.suffix == ".ckpt":
        problem = resume.damage(path)
        if problem:
            raise UserError(f"branch={branch}: {problem}")
        return path
    newest = resume.newest(path / "checkpoints") if path.is_dir() else None
    if newest is None:
        raise UserError(f"branch={branch}: no checkpoint there; name a run's folder or one of its checkpoints/*.ckpt")
    return newest


def branched_run(branch: str) -> Path:
    """The folder of the run that a ``branch=`` names, or of whose checkpoints it names one; nothing of it is read."""
    path = Path(branch).expanduser()
    return path.parent.parent if path.suffix == ".ckpt" else path


def parent_of(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """The lineage entry of a new run in `folder` for its parent's `checkpoint`, with a path relative to that folder."""
    run_folder = checkpoint.parent.parent
    grand = read_lineage(run_folder, "none") if (run_folder / NAME).exists() else {}
    samples_seen = read_json(checkpoint / "state.json").get("samples_seen")
    if type(samples_seen) is not int:
        raise UserError(f"{checkpoint / 'state.json'}: does not say how many samples were seen (samples_seen)")
    return {
        "run": run_folder.absolute().name,
        "root": root(grand) or run_folder.absolute().name,
        "wandb_id": grand.get("wandb_id"),
        "checkpoint": relative(checkpoint, folder),
        "sha256": sha256(checkpoint / "manifest.json"),
        "samples_seen_total": samples_before(grand) + samples_seen,
    }


def samples_before(lineage: dict[str, Any]) -> int:
    """The samples that the parents of a lineage had seen, all together, when it was branched from them."""
    return (lineage.get("parent") or {}).get("samples_seen_total", 0)


def root(lineage: dict[str, Any]) -> str | None:
    """The name of the root run of the tree of branches that a lineage belongs to, which may be the run itself."""
    parent = lineage.get("parent")
    return (parent.get("root") or parent["run"]) if parent else lineage.get("run")


def begun_from(lineage: dict[str, Any], folder: Path) -> Path | None:
    """The checkpoint that the run in `folder` began from, where it is now; None for a run without a parent."""
    return found(lineage["parent"]["checkpoint"], folder) if lineage["parent"] else None


def parent_kept(lineage: dict[str, Any], folder: Path) -> bool:
    """Whether the checkpoint that the run in `folder` began from is still there, the same one."""
    with suppress(OSError, ValueError):
        return sha256(begun_from(lineage, folder) / "manifest.json") == lineage["parent"].get("sha256")
    return False


def same_parent(branch: str | None, lineage: dict[str, Any]) -> bool:
    """Whether ``branch=`` names, however it is spelled, the run or the checkpoint that a lineage says it began from."""
    parent = lineage["parent"]
    if not branch or not parent:
        return False
    path = Path(branch).expanduser()
    own = path if path.suffix == ".ckpt" else path / "checkpoints" / Path(parent["checkpoint"]).name
    with suppress(OSError, ValueError):
        if sha256(own / "manifest.json") == parent.get("sha256"):
            return True
    with suppress(OSError, ValueError):  # a run that was trained further since
        known = parent.get("wandb_id")
        return path.suffix != ".ckpt" and known is not None and read_lineage(path, "none")["wandb_id"] == known
    return False


def same_first_stage(path: str | None, folder: Path) -> bool:
    """Whether ``first_stage=`` names, however it is spelled, the weights that the run in `folder` was trained with."""
    known = fingerprint(folder)
    return path is not None and known is not None and known in digests(Path(path).expanduser())


def original(lineage: dict[str, Any], folder: Path, runs_dir: str) -> Path | None:
    """The run that `folder` is a copy of; None if it was begun there, or moved or renamed since.

    It is a copy if the run of its lineage is beside it, or in its former `runs_dir`, under the same W&B id.
    """
    name = lineage.get("run")
    if not isinstance(name, str) or not RUN_NAME.fullmatch(name):
        return None
    for beside in (folder.parent, Path(runs_dir).expanduser()):
        with suppress(OSError, ValueError):
            other = beside / name
            if not other.samefile(folder) and read_json(other / NAME).get("wandb_id") == lineage["wandb_id"]:
                return other
    return None
