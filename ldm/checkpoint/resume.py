"""Training checkpoints: a folder of tensors with a manifest of hashes, found by scanning the run's folder.

``step_00001000.ckpt/`` holds ``state.pt`` (tensors and plain numbers, read with ``weights_only``), ``state.json`` (the
counters, for people) and ``manifest.json`` (sha256 of the others, whose it is, and whether all numbers are finite),
which makes it whole; where weights are sharded, ``rows_00000.pt`` and so on too. ``last.ckpt`` is a hint.
"""

import json
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoint import base, identity, safe_load
from ldm.checkpoint import rows as shards
from ldm.checkpoint.finite import check_finite, not_finite
from ldm.errors import UserError
from ldm.files import TEMPORARY, discard, read_text, refusals_named, replace, sha256, sweep, sync, write_text

log = logging.getLogger(__name__)
NAME = "step_{:08d}.ckpt"
PATTERN = re.compile(r"step_(\d{8,})\.ckpt")
ROWS = "rows_{:05d}.pt"
MAX_MANIFEST_BYTES = 1 << 20


def save(
    folder: Path, step: int, state: dict[str, Any], counters: dict[str, Any], row_digests: Sequence[str] = ()
) -> Path:
    """Write ``folder/step_<step>.ckpt`` durably. `state`: nested containers of tensors and numbers.

    With `row_digests`, what `save_rows` returned to each rank, what it wrote becomes part of the checkpoint. Later
    checkpoints are deleted: a run goes back to an earlier step only because they are broken.
    """
    target = folder / NAME.format(step)

    def write(temporary: Path) -> None:
        if row_digests:
            _rows_folder(folder, step, len(row_digests)).replace(temporary)
        else:
            temporary.mkdir()
        with (temporary / "state.pt").open("wb") as file:  # so that a full disk is an OSError
            torch.save(state, file)
        (temporary / "state.json").write_text(json.dumps(counters, indent=2) + "\n")
        rows = {ROWS.format(rank): digest for rank, digest in enumerate(row_digests)}
        missing = [name for name in rows if not (temporary / name).exists()]
        if missing:
            raise UserError(
                f"{target}: {missing[0]} was written, but is not there: runs_dir must be on a disk that all nodes share"
            )
        files = {name: sha256(temporary / name) for name in ("state.json", "state.pt")} | rows
        finite = not_finite(state) is None
        manifest = {"step": step, "finite": finite, **identity.stamp(folder.parent), "files": files}
        (temporary / "manifest.json").write_text(_text(manifest))

    replace(target, write)
    write_text(folder / "last.ckpt", f"{target.name}\n")
    for later in _found(folder):
        if _step(later) > step:
            discard(later)
    return target


def save_rows(folder: Path, step: int, rank: int, world_size: int, rows: dict[str, torch.Tensor]) -> str:
    """Write what a rank holds of sharded tensors, by their path, for `save` to take. Returns its sha256."""
    path = _rows_folder(folder, step, world_size) / ROWS.format(rank)
    with refusals_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            torch.save(rows, file)
        sync(path)
    return sha256(path)


def _rows_folder(folder: Path, step: int, world_size: int) -> Path:
    return folder / f"{TEMPORARY}rows-{step:08d}-of-{world_size}"


def load(checkpoint: Path) -> dict[str, Any]:
    """The state of one checkpoint folder, after checking it. Raises ValueError saying what is wrong with it."""
    check(checkpoint)
    return load_checked(checkpoint)


def check(checkpoint: Path) -> None:
    """Raises ValueError saying what is wrong with a checkpoint folder."""
    problem = damage(checkpoint)
    if problem:
        raise UserError(f"{checkpoint}: {problem}")


def load_checked(checkpoint: Path, lazy: bool = False) -> dict[str, Any]:
    """As `load`, for a checkpoint whose hashes one rank has verified for all.

    `lazy`: tensors are read where they are used, of what was saved in rows as `shards.Rows`.
    """
    files = [Path(name).name for name in _manifest(checkpoint)["files"]]
    state, *rows = [
        safe_load.load(checkpoint / name, f"{checkpoint}: {name}", lazy)
        for name in ("state.pt", *sorted(name for name in files if name.startswith("rows_")))
    ]
    check_finite(state, checkpoint)  # whatever its manifest says
    try:
        state = shards.joined(state, rows, lazy) if rows else state
    except ValueError as error:
        raise UserError(f"{checkpoint}: {error}") from error
    if not state.get("base"):
        return state
    frozen = base.load(checkpoint.absolute().parent.parent / "weights", state["base"], checkpoint)
    return {**state, "trained": {**frozen, **state["trained"]}}


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint folder; None if all is finite, of this run, and has its manifest's hashes."""
    try:
        manifest = _manifest(checkpoint)
        named = PATTERN.fullmatch(checkpoint.name)
        if named and manifest["step"] not in (None, int(named[1])):
            return "its manifest is damaged, or of another step"
        for name, digest in manifest["files"].items():
            if sha256(checkpoint / Path(name).name) != digest:
                return f"{name} is damaged (its hash is not the manifest's)"
        if "state.pt" not in manifest["files"]:
            return "its manifest does not name state.pt"
    except FileNotFoundError as error:
        return f"incomplete: {Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        return f"its manifest cannot be read ({type(error).__name__})"
    return foreign(checkpoint, manifest) if manifest["finite"] is True else "it holds numbers that are not finite"


def foreign(checkpoint: Path, manifest: dict[str, Any] | None = None) -> str | None:
    """Why a checkpoint cannot belong to the run it lies in; None if it can, or cannot be read at all."""
    try:
        own = _manifest(checkpoint) if manifest is None else manifest
        return identity.foreign(own, checkpoint.absolute().parent.parent)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None


def _manifest(checkpoint: Path) -> dict[str, Any]:
    text = read_text(checkpoint / "manifest.json", MAX_MANIFEST_BYTES)
    manifest = upgraded(json.loads(text))
    if text != _text(json.loads(text)):
        raise UserError("not the text that was written")
    return manifest


def upgraded(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest in today's format; older formats recorded less. Raises KeyError for an unknown format.

    No older one has the run, the first two lack `finite` (only finite numbers were saved then), the first the step.
    """
    formats = ("files", "step files", "step finite files", "step finite run config files")
    if manifest.keys() not in [set(keys.split()) for keys in formats]:
        raise KeyError(*manifest)
    return {"step": None, "finite": True, **identity.UNKNOWN, **manifest}


def _text(manifest: dict[str, Any]) -> str:
    """The canonical text of a manifest, so that any changed byte is detected as damage."""
    return json.dumps(manifest, indent=2) + "\n"


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`; broken ones are named and passed over. None if there never was one.

    Raises ValueError if there are checkpoints but all are broken, rather than start from step 0, and for one of another
    run, which resuming would delete.
    """
    found = _found(folder)
    for checkpoint in found:
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        if problem == foreign(checkpoint):
            raise UserError(f"{checkpoint}: {problem}; move it elsewhere, or start from it with branch= and run=")
        log.warning("%s: %s; using the one before it", checkpoint, problem)
    if found:
        raise UserError(f"{folder}: none of its {len(found)} checkpoints is whole; overwrite=true starts anew")
    return None


def run_id(folder: Path) -> str | None:
    """The run id in the newest readable checkpoint; None if there is none."""
    for checkpoint in _found(folder):
        with suppress(OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
            return _manifest(checkpoint)["run"]
    return None


def retain(folder: Path, keep: int, every_steps: int | None = None) -> None:
    """Delete what interrupted writes left and all checkpoints but the newest `keep` (>= 2) and each `every_steps`."""
    sweep(folder)
    for checkpoint in _found(folder)[max(keep, 2) :]:
        if not every_steps or _step(checkpoint) % every_steps:
            discard(checkpoint)


def _step(checkpoint: Path) -> int:
    return int(PATTERN.fullmatch(checkpoint.name)[1])


def _found(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted((p for p in folder.glob("step_*.ckpt") if PATTERN.fullmatch(p.name)), key=_step, reverse=True)
