"""Which run a file belongs to: a run's id is in its lineage.json, and every checkpoint and set of weights repeats it.

The lineage also lists the sha256 of each config.yaml the run was begun with. A folder may be copied, moved and renamed:
nothing here depends on its path. Files that are older than run ids have none and are accepted.
"""

import hashlib
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.data.seals import check_seal
from ldm.errors import UserError
from ldm.files import read_json, sha256

UNKNOWN = {"run": None, "config": None}


def new_id() -> str:
    """An id that no other run has."""
    return secrets.token_hex(16)


def read_lineage(run: Path) -> dict[str, Any]:
    """A run's lineage.json, an empty one if there is none. Raises ValueError if it was edited or damaged."""
    path = run / "lineage.json"
    if not path.exists():
        return {}
    lineage = read_json(path)
    check_seal(lineage, path)
    configs = lineage.get("configs", [])
    if not isinstance(lineage.get("id", ""), str) or not isinstance(configs, list):
        raise UserError(f"{path}: not the lineage of a run")
    return lineage


def stamp(run: Path) -> dict[str, Any]:
    """The stamp that a file of this run carries. A lineage that cannot be read does not prevent a checkpoint."""
    try:
        lineage = read_lineage(run)
    except (OSError, ValueError):
        return UNKNOWN
    return {"run": lineage.get("id"), "config": (lineage.get("configs") or [None])[-1]}


def foreign(stamped: Mapping[str, Any], run: Path) -> str | None:
    """Why a file with this stamp cannot belong to this run; None if it can.

    Raises ValueError if the run's lineage was edited or damaged.
    """
    lineage = read_lineage(run)
    if not lineage or stamped.get("run") is None:
        return None
    return None if stamped["run"] == lineage.get("id") else f"it is of another run than {run}, whose id is another"


def note_config(lineage: dict[str, Any], config: str) -> None:
    """Add the text of a config.yaml to those that the run of `lineage` was begun with; a run without an id gets one."""
    lineage.setdefault("id", new_id())
    digest = hashlib.sha256(config.encode()).hexdigest()
    lineage["configs"] = [*(own for own in lineage.get("configs", []) if own != digest), digest]


def check_config(run: Path) -> None:
    """Raises ValueError if a run's config.yaml is gone though it has checkpoints, or was edited."""
    if not (run / "config.yaml").exists():
        if any(run.glob("checkpoints/step_*.ckpt")):
            raise UserError(
                f"{run / 'config.yaml'} is missing, so nobody can tell whether its checkpoints were trained like this: "
                "put it back, start from one of them with branch= and another run=, or start anew with overwrite=true"
            )
    elif problem := edited_config(run):
        raise UserError(
            f"{problem}: put it back as it was and change keys on the command line, start from one of its checkpoints "
            "with branch= and another run=, or start anew with overwrite=true"
        )


def check_finished(run: Path, step: Any) -> None:
    """Raises ValueError if a lineage says that a run finished at `step`, and nothing in its folder is of that step."""
    named = (re.match(r"step_(\d{8,})\.", part.name) for part in run.glob("*/step_*"))
    found = [int(name[1]) for name in named if name]
    if step is not None and not any(own >= step for own in found):
        raise UserError(
            f"{run / 'lineage.json'} says that the run finished at step {step}, but its folder has nothing of it "
            f"(the last is of {max(found, default=0)}): put it back, or start anew with overwrite=true"
        )


def edited_config(run: Path) -> str | None:
    """What is wrong with a run's config.yaml: None if the run was begun with it, or its lineage does not record any."""
    configs = read_lineage(run).get("configs")
    if not configs or not (run / "config.yaml").exists() or sha256(run / "config.yaml") in configs:
        return None
    return f"{run / 'config.yaml'} was edited since the run wrote it"
