"""All shards of a source: which image goes where, what an interrupted run has done, the manifest.

Names alone decide which image lies where, so that the bytes depend neither on the number of processes nor on
interruptions.
"""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from ldm.data.making.coco import read_annotations
from ldm.data.making.encode import Job
from ldm.data.making.folders import scan
from ldm.data.making.formats import TABLES
from ldm.data.making.manifest import SPLITS, names_digest, nothing_usable, read_finished, summarise
from ldm.data.making.maps import Maps
from ldm.data.making.objects import ObjectRules
from ldm.data.making.openimages import read_openimages
from ldm.data.making.processes import finish
from ldm.data.making.report import progress
from ldm.data.making.settings import Settings, place
from ldm.data.making.sources import LeftOut, Source, Sources
from ldm.data.making.tables import read_table
from ldm.data.user_error import UserError
from ldm.data.writing import MANIFEST, write_manifest

JOURNAL = "progress.jsonl"
BEGINNING = '{"source": '


def make_shards(settings: Settings, console: Console) -> dict[str, Any]:
    """Write all shards and the manifest; returns the manifest. A finished folder is confirmed, never changed."""
    found = find(settings)
    if not found.sources:
        raise nothing_usable(found.left_out, settings)
    plan = split(found.sources, settings)
    read_finished(settings, plan, found.sources)  # refuses before anything is written
    settings.out.mkdir(parents=True, exist_ok=True)
    with _journal(settings, found, plan) as (journal, done):
        finished = read_finished(settings, plan, found.sources)
        _sweep(settings.out, plan)
        maps = _maps(settings)
        jobs = [
            Job(
                settings.out / name,
                tuple(members),
                settings.size,
                settings.quality,
                done.get(name),
                row,
                settings.member_names,
                maps,
            )
            for name, members in plan.items()
            for row in [None if finished is None else finished[name]]
        ]
        notes = {}
        with progress(console, len(found.sources)) as advance:
            for note in finish(jobs, settings.workers, advance):
                notes[note["shard"]] = note
                _write_note(journal, note)
        manifest = summarise([notes[name] for name in plan], settings, found)
        if manifest["samples"]:
            write_manifest(settings.out, manifest)
        (settings.out / JOURNAL).unlink()
    if not manifest["samples"]:
        raise nothing_usable([LeftOut(**row) for row in manifest["skipped"]], settings)
    return manifest


def _maps(settings: Settings) -> Maps | None:
    """The maps of classes that go with the images, if any do."""
    if not settings.num_classes:
        return None
    folder = str(place("maps", settings.maps)) if settings.maps else ""
    return Maps(folder, settings.num_classes, settings.unlabelled)


def find(settings: Settings) -> Sources:
    """The sources to be put into shards, from a folder, a table or annotations."""
    source = settings.source
    if settings.maps and not place("maps", settings.maps).is_dir():
        raise UserError(f"maps={settings.maps} is no folder")
    scanned = source.is_dir() and not settings.annotations
    if scanned and settings.maps and place("maps", settings.maps).resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"maps={settings.maps}: lies in source={source}, whose maps would be taken for images; keep them apart"
        )
    if settings.annotations:
        _check_once(settings.annotation_files)
        rules = ObjectRules(settings.min_area, settings.min_objects, settings.max_objects)
        if settings.openimages:
            descriptions = place("descriptions", settings.descriptions)
            return read_openimages(source, settings.annotation_files, descriptions, settings.classes, rules)
        return read_annotations(source, settings.annotation_files, rules)
    if source.is_file() and source.suffix.lower() not in TABLES:
        raise UserError(f"source={source}: a table is one of {', '.join(TABLES)}")
    return read_table(settings) if source.is_file() else scan(source, settings.beside)


def _check_once(files: list[Path]) -> None:
    """UserError for a file that is named twice, whose boxes there would be twice."""
    twice = [file for file, count in Counter(map(os.path.realpath, files)).items() if count > 1]
    if twice:
        raise UserError(f"annotations= names {twice[0]} twice")


def split(sources: list[Source], settings: Settings) -> dict[str, list[Source]]:
    """Shard name -> its images: the first in hash order are held out, the rest train."""
    ordered = sorted(sources, key=lambda source: source.rank)
    held_out = max(0, min(round(settings.validation * len(ordered)), len(ordered) - 1))
    plan = {}
    for part, members in zip(SPLITS, (ordered[held_out:], ordered[:held_out]), strict=True):
        for i in range(ceil(len(members) / settings.shard_samples)):
            chunk = members[i * settings.shard_samples : (i + 1) * settings.shard_samples]
            plan[f"{part}-{i:05d}.tar"] = chunk
    return plan


# -- the folder ----------------------------------------------------------------------------------------------------


@contextmanager
def _journal(
    settings: Settings, found: Sources, plan: dict[str, list[Source]]
) -> Iterator[tuple[IO[str], dict[str, Any]]]:
    """The journal of finished shards, locked, and its notes by shard; lines that were cut off are skipped.

    ValueError where shards lie there that neither a journal nor a manifest knows, or that are another source's.
    """
    out = settings.out
    shards = sorted(path.name for path in out.glob("*.tar"))
    if shards and not (out / JOURNAL).exists() and not (out / MANIFEST).exists():
        raise UserError(
            f"out={out} already holds {shards[0]}, which is not of this run; delete it or choose another folder"
        )
    with (out / JOURNAL).open("a+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"out={out}: another process is writing there") from None
        file.seek(0)
        notes = list(_read_notes(file))
        if not all("inputs" in note or note.keys() <= {"source", "images"} for note in notes):
            raise UserError(f"out={out} holds a {JOURNAL} of another kind; choose another folder")
        place = {"source": str(settings.source.resolve()), "images": names_digest(found.sources)}
        before = next((note for note in notes if "source" in note), place)
        if shards and all(before.get(key) != value for key, value in place.items()):
            raise UserError(
                f"out={out} holds the unfinished shards of {before['source']}; choose another folder, or delete it"
            )
        file.write("\n")  # ends a line that was cut short
        _write_note(file, place)
        try:
            yield file, {note["shard"]: note for note in notes if "shard" in note}
        except ValueError:
            if (out / MANIFEST).exists():  # a finished folder stays as it was
                (out / JOURNAL).unlink()
            raise


def _read_notes(file: IO[str]) -> Iterator[dict[str, Any]]:
    """The notes in a journal; cut-off lines are skipped, content of another kind is a note with the key ''."""
    text = file.read().lstrip("\n")
    if text[: len(BEGINNING)] != BEGINNING[: len(text)]:
        yield {"": text}
    for line in text.splitlines():
        try:
            note = json.loads(line)
        except (ValueError, RecursionError):
            continue
        yield note if isinstance(note, dict) else {"": note}


def _write_note(journal: IO[str], note: dict[str, Any]) -> None:
    journal.write(json.dumps(note) + "\n")
    journal.flush()
    os.fsync(journal.fileno())


def _sweep(out: Path, plan: dict[str, list[Source]]) -> None:
    """Remove partial files that a killed process left."""
    for name in [*plan, MANIFEST]:
        (out / f"{name}.partial").unlink(missing_ok=True)
