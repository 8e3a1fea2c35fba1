"""What models came from, as a tree: every run once, with the steps and samples of it that went into them.

A run counts as far as its child branched from it, or as its own weights are of: what it was trained on later is no part
of them. So of 500 steps, two branches of 50 and four of 50 from these, four experts are of 800 (eDiff-I, Figure 7).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldm.cascade.manifest import KIND as CASCADE
from ldm.cascade.manifest import read_manifest
from ldm.checkpoint import weights
from ldm.ensemble import read_members
from ldm.errors import UserError
from ldm.files import read_json
from ldm.lineage import begun_from, read_lineage, samples_before
from ldm.loading import manifest_kind
from ldm.places import found as place_of


@dataclass(frozen=True)
class Ancestor:
    """A run with the `steps` of it that count, its samples, and the run that it began from, by their keys."""

    key: str
    name: str
    steps: int
    samples: int
    parent: str | None


def lineage_of(models: Iterable[str | Path]) -> dict[str, Ancestor]:
    """The runs that these runs, weights files and manifests came from, themselves among them, by key; of a cascade
    those of all stages.

    Raises UserError for a path that is none of these.
    """
    found: dict[str, Ancestor] = {}
    for path in map(Path, models):
        for file in _files_of(path):
            _add(found, file)
    return found


def _files_of(path: Path) -> list[Path]:
    """The weights of the members of an ensemble, and of all stages of a cascade; else the path itself."""
    if path.suffix != ".yaml":
        return [path]
    if manifest_kind(path) == CASCADE:
        return [file for stage in read_manifest(path)[0] for file in _files_of(stage.path)]
    return [member.file for member in read_members(path)]


def _add(found: dict[str, Ancestor], path: Path) -> None:
    """Add the run of a folder or weights file, and all before it."""
    run = path.parent.parent if path.suffix == ".safetensors" else path
    if path.suffix == ".safetensors":
        described = path.with_name(f"{path.name.partition('.')[0]}.json")
    else:
        described = weights.newest(run)
    metadata = read_json(described)
    steps, samples = metadata.get("step"), metadata.get("samples_seen")
    if type(steps) is not int or type(samples) is not int:
        raise UserError(f"{described}: does not say how many steps and samples it is of")
    folder: Path | None = run.resolve()
    while folder is not None:
        lineage = read_lineage(folder, "none")
        if "merged" in lineage:
            _add_merged(found, folder, lineage["merged"])
            return
        parent = lineage["parent"]
        before = _before(parent, folder) if parent else None
        _note(found, Ancestor(str(folder), folder.name, steps, samples, before["key"] if before else None))
        if before is None:
            return
        folder, steps, samples = before["folder"], before["steps"], before["samples"]
        if folder is None:  # only its child knows of it
            _note(found, Ancestor(before["key"], before["name"], steps, samples, None))


def _add_merged(found: dict[str, Ancestor], folder: Path, rows: list[dict[str, Any]]) -> None:
    """Add a run that is the average of others' weights (merging.py), and these: no step of training is its own."""
    names = ", ".join(row["run"] for row in rows)
    _note(found, Ancestor(str(folder), f"{folder.name} (the average of {names})", 0, 0, None))
    for row in rows:
        file = place_of(row["weights"], folder)
        if not file.exists():
            raise UserError(f"{folder}: is the average of {names}; the weights of {row['run']} are not there, {file}")
        _add(found, file)


def _before(parent: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The run that the one in `folder` began from, and how far; of one that is not there all before it is one run."""
    checkpoint = begun_from({"parent": parent}, folder)
    run = checkpoint.parent.parent.resolve()
    known = (run / "lineage.json").exists()
    before = samples_before(read_lineage(run, "none")) if known else 0
    return {
        "key": str(run) if known else str(parent.get("wandb_id") or run),
        "folder": run if known else None,
        "name": run.name if known else f"{parent.get('run', run.name)} (not there; with all before it)",
        "steps": int(checkpoint.stem.removeprefix("step_")),
        "samples": parent["samples_seen_total"] - before,
    }


def _note(found: dict[str, Ancestor], run: Ancestor) -> None:
    """Add a run, or what of it counts more than was known."""
    before = found.get(run.key, run)
    steps, samples = max(before.steps, run.steps), max(before.samples, run.samples)
    found[run.key] = replace(run, steps=steps, samples=samples)


def lines(found: dict[str, Ancestor]) -> list[str]:
    """The tree as text, a run a line, and the totals."""
    rows: list[tuple[str, Ancestor]] = []

    def below(parent: str | None, depth: int) -> None:
        for run in found.values():
            if run.parent == parent:
                rows.append((f"{'  ' * depth}{'+ ' if depth else ''}{run.name}", run))
                below(run.key, depth + 1)

    below(None, 0)
    wide = max(len(name) for name, _ in rows)
    shown = [f"{name:<{wide}}  {run.steps:>9,} steps  {run.samples:>13,} samples" for name, run in rows]
    steps, samples = total(found)
    return [*shown, f"{f'{len(rows)} runs':<{wide}}  {steps:>9,} steps  {samples:>13,} samples"]


def total(found: dict[str, Ancestor]) -> tuple[int, int]:
    """Steps and samples of all runs, each counted once."""
    return sum(run.steps for run in found.values()), sum(run.samples for run in found.values())
