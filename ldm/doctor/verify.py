"""Reads all of a run, a cache, an ensemble, a cascade or shards again and verifies it against recorded hashes.

Starting and sampling look at ids, names and small files only; here all bytes are hashed, which takes a while.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ldm.cascade.manifest import KIND as CASCADE
from ldm.cascade.manifest import Entry
from ldm.cascade.manifest import read_manifest as read_manifest_of_cascade
from ldm.checkpoint import identity, resume, weights
from ldm.config import load_tree
from ldm.data.cache import MANIFEST, CacheFile, read_manifest
from ldm.data.cache_labels import check_digest
from ldm.data.paths import expand
from ldm.data.seals import SEAL
from ldm.ensemble import KIND as EXPERTS
from ldm.ensemble import check_member, read_members
from ldm.errors import UserError
from ldm.files import read_json, sha256
from ldm.lineage import begun_from, read_lineage
from ldm.loading import manifest_kind
from ldm.redaction import redacted


class Verdict(NamedTuple):
    """What was seen of one file: `problem` in a line, or None; `note` says what could not be verified."""

    path: Any
    problem: str | None
    note: str = ""


def verify(place: str) -> Iterator[Verdict]:
    """Yield a verdict for each file of `place` as it is verified. Raises ValueError if it is of no known kind.

    The folder of a run or of a cache, the .yaml of an ensemble or a cascade, or shards as data.train names them (or
    their folder).
    """
    path = Path(place).expanduser()
    if path.suffix == ".yaml":
        yield from MANIFESTS[manifest_kind(path)](path)
    elif (path / MANIFEST).exists():
        yield from _cache(path)
    elif any((path / name).exists() for name in ("config.yaml", "lineage.json", "checkpoints", "weights")):
        yield from _run(path)
    else:
        yield from _shards(f"{place.rstrip('/')}/*.tar" if path.is_dir() else place)


def report(place: str) -> int:
    """Print the verdicts as they come. The exit status: 0 if everything is as it was written, 1 if not."""
    count = bad = 0
    for verdict in verify(place):
        count, bad = count + 1, bad + (verdict.problem is not None)
        word = "ok  " if verdict.problem is None else "FAIL"
        said = verdict.problem or verdict.note
        print(redacted(f"{word} {verdict.path}{f': {said}' if said else ''}"), flush=True)
    print(f"{count} files read again, {bad} of them not as they were written" if count else f"{place}: nothing there")
    return int(bad > 0 or count == 0)


def _tried(path: Path, look: Callable[[], Any]) -> Verdict:
    """The verdict of `look`, which raises what is wrong with the file, or returns a note on it or None."""
    try:
        return Verdict(path, None, look() or "")
    except (ValueError, OSError) as error:
        return Verdict(path, str(error).removeprefix(f"{path}: "))


# -- a run -----------------------------------------------------------------------------------------------------------


def _run(run: Path) -> Iterator[Verdict]:
    yield _tried(run / "lineage.json", lambda: _lineage(run))
    yield _tried(run / "config.yaml", lambda: _config(run))
    for checkpoint in sorted(run.glob("checkpoints/step_*.ckpt")):
        yield _tried(checkpoint, partial(_checkpoint, checkpoint))
    for folder in ("weights", "snapshots"):
        for description in sorted((run / folder).glob("*.json")):
            yield _tried(description, partial(_description, description))
        for file in sorted((run / folder).glob("*.safetensors")):
            yield _tried(file, lambda own=file: weights.read(own) and None)  # type: ignore[misc]  # a lambda with a default


def _lineage(run: Path) -> str | None:
    path = run / "lineage.json"
    if not path.exists():
        raise UserError("missing: nothing else can be known to be of this run")
    lineage = identity.read_lineage(run)
    checkpoint = begun_from(read_lineage(run, "none"), run)
    manifest = checkpoint / "manifest.json" if checkpoint else None
    if manifest and manifest.is_file() and sha256(manifest) != lineage["parent"].get("sha256"):
        raise UserError(f"it began from {checkpoint}, which is another checkpoint now")
    identity.check_finished(run, lineage.get("finished_step"))
    return None if SEAL in lineage else "from before there were seals"


def _config(run: Path) -> str | None:
    load_tree(run / "config.yaml")
    problem = identity.edited_config(run)
    if problem:
        raise UserError(problem)
    return None if "configs" in identity.read_lineage(run) else "its lineage does not say what it was"


def _checkpoint(checkpoint: Path) -> str | None:
    resume.check(checkpoint)
    manifest = read_json(checkpoint / "manifest.json")
    extra = {file.name for file in checkpoint.iterdir()} - {"manifest.json", *manifest["files"]}
    if extra:
        raise UserError(f"its manifest does not name {', '.join(sorted(extra))}")
    return _stamped(manifest, checkpoint.absolute().parent.parent)


def _description(path: Path) -> str | None:
    metadata = weights.describe(path)
    for kind in metadata["sha256"]:
        if not path.with_suffix(f".{kind}.safetensors").exists():
            raise UserError(f"describes {path.stem}.{kind}.safetensors, which is missing")
    return _stamped(metadata, path.absolute().parent.parent)


def _stamped(told: dict[str, Any], run: Path) -> str | None:
    configs = identity.read_lineage(run).get("configs", [])
    if told.get("run") is None:
        return "from before runs had ids"
    return None if told.get("config") in configs else "written under a config.yaml that the lineage does not list"


# -- the others ------------------------------------------------------------------------------------------------------


def _ensemble(path: Path) -> Iterator[Verdict]:
    yield _tried(path, lambda: read_members(path) and None)
    try:
        members = read_members(path)
    except ValueError:
        return
    for member in members:
        yield _tried(member.file, lambda own=member: check_member(own, weights.load(own.file), path))  # type: ignore[misc]  # a lambda with a default


def _cascade(path: Path) -> Iterator[Verdict]:
    yield _tried(path, lambda: read_manifest_of_cascade(path) and None)
    try:
        entries, _ = read_manifest_of_cascade(path)
    except ValueError:
        return
    for entry in entries:
        if entry.path.suffix == ".yaml":
            yield from _ensemble(entry.path)
        else:
            yield _tried(entry.path, partial(_stage_of_cascade, entry, path))


def _stage_of_cascade(entry: Entry, path: Path) -> None:
    if [weights.read(entry.path).digest] != entry.digests:
        raise UserError(f"not the weights that {path} was written for")


# Manifests by the kind that they say they are of.
MANIFESTS = {EXPERTS: _ensemble, CASCADE: _cascade}


def _cache(folder: Path) -> Iterator[Verdict]:
    verdict = _tried(folder / MANIFEST, lambda: None if SEAL in read_manifest(folder) else "from before seals")
    yield verdict
    made = {"encoders": {}} if verdict.problem else read_manifest(folder)
    encoders = {facts["digest"] for facts in made["encoders"].values()}
    for path in sorted(folder.glob("*.safetensors")):
        yield _tried(path, partial(_cache_file, path, encoders, made.get(SEAL)))


def _cache_file(path: Path, encoders: set[str], seal: str | None) -> str | None:
    CacheFile(path, encoders, seal)
    return None if check_digest(path) else "from before files had labels"


def _shards(pattern: str) -> Iterator[Verdict]:
    paths = expand(pattern, "verify")
    from ldm.data.verifying import verify as verify_shards

    for verdict in verify_shards(paths):
        yield Verdict(verdict.path, verdict.problem, "" if verdict.listed else "no manifest says what it should be")
