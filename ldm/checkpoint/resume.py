"""Training checkpoints: a folder of tensors with a manifest of hashes, found again by scanning, never by trust.

``step_00001000.ckpt/`` holds ``state.pt`` (tensors and plain numbers, read with ``weights_only``), ``state.json`` (the
counters, for people) and ``manifest.json`` (sha256 of the others), which makes it whole. ``last.ckpt`` is a hint.
"""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoint import restricted
from ldm.files import replace, sha256, sweep, write_text

log = logging.getLogger(__name__)
NAME = "step_{:08d}.ckpt"
PATTERN = re.compile(r"step_(\d{8,})\.ckpt")


def save(folder: Path, step: int, state: dict[str, Any], counters: dict[str, Any]) -> Path:
    """Write ``folder/step_<step>.ckpt`` durably. `state`: nested containers of tensors and numbers.

    Later checkpoints go: a run that went back to an earlier step did so because they are broken.
    """
    target = folder / NAME.format(step)

    def write(temporary: Path) -> None:
        temporary.mkdir()
        with (temporary / "state.pt").open("wb") as file:  # so that a full disk is an OSError
            torch.save(state, file)
        (temporary / "state.json").write_text(json.dumps(counters, indent=2) + "\n")
        files = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / "manifest.json").write_text(_manifest(step, files))

    replace(target, write)
    write_text(folder / "last.ckpt", f"{target.name}\n")
    for later in _found(folder):
        if _step(later) > step:
            shutil.rmtree(later)
    return target


def load(checkpoint: Path) -> dict[str, Any]:
    """The state of one checkpoint folder, after checking it. Raises ValueError saying what is wrong with it."""
    problem = damage(checkpoint)
    if problem:
        raise ValueError(f"{checkpoint}: {problem}")
    return restricted.load(checkpoint / "state.pt", f"{checkpoint}: state.pt")


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint folder; None if every file has the hash its manifest states."""
    try:
        text = (checkpoint / "manifest.json").read_text()
        step, files = json.loads(text)["step"], json.loads(text)["files"]
        if text != _manifest(step, files) or (PATTERN.fullmatch(checkpoint.name) and step != _step(checkpoint)):
            return "its manifest is damaged"
        for name, digest in files.items():
            if sha256(checkpoint / Path(name).name) != digest:
                return f"{name} is damaged (its hash is not the manifest's)"
    except FileNotFoundError as error:
        return f"incomplete: {Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        return f"its manifest cannot be read ({type(error).__name__})"
    return None if "state.pt" in files else "its manifest does not name state.pt"


def _manifest(step: int, files: dict[str, str]) -> str:
    """The one text that says this, so that a manifest with any other byte in it is known to be damaged."""
    return json.dumps({"step": step, "files": files}, indent=2) + "\n"


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`; broken ones are named and passed over. None if there never was one.

    Raises ValueError if there are checkpoints but all are broken, rather than start from step 0.
    """
    found = _found(folder)
    for checkpoint in found:
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        log.warning("%s: %s; using the one before it", checkpoint, problem)
    if found:
        raise ValueError(f"{folder}: none of its {len(found)} checkpoints is whole; overwrite=true starts anew")
    return None


def retain(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` (at least 2) checkpoints, and what interrupted writes left."""
    sweep(folder)
    for checkpoint in _found(folder)[max(keep, 2) :]:
        shutil.rmtree(checkpoint)


def _step(checkpoint: Path) -> int:
    return int(PATTERN.fullmatch(checkpoint.name)[1])


def _found(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted((p for p in folder.glob("step_*.ckpt") if PATTERN.fullmatch(p.name)), key=_step, reverse=True)
