"""All shards of a source: which image goes where, what an interrupted run has done, the manifest.

Names alone decide which image lies where, so that the bytes depend neither on the number of processes nor on
interruptions.
"""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from data.making.coco import read_annotations
from data.making.encode import Job
from data.making.processes import finish
from data.making.settings import Settings
from data.making.sources import Source, Sources, scan
from data.making.tables import TABLES, read_table
from data.writing import MANIFEST, write_manifest

JOURNAL = "progress.jsonl"
SPLITS = ("train", "validation")


def make_shards(settings: Settings, console: Console) -> dict[str, Any]:
    """Write all shards and the manifest; returns the manifest."""
    found = find(settings)
    plan = split(found.sources, settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    _refuse_strangers(settings.out, plan)
    with _journal(settings.out) as (journal, done):
        _sweep(settings.out)
        jobs = [
            Job(settings.out / name, tuple(members), settings.size, settings.quality, done.get(name))
            for name, members in plan.items()
        ]
        notes = {}
        with _progress(console, len(found.sources)) as advance:
            for note in finish(jobs, settings.workers, advance):
                notes[note["shard"]] = note
                journal.write(json.dumps(note) + "\n")
                journal.flush()
                os.fsync(journal.fileno())
        manifest = summarise([notes[name] for name in plan], settings, found.class_names)
        if not manifest["samples"]:
            first = manifest["skipped"][0]
            raise ValueError(f"none of the {len(found.sources)} images can be used; the first: {first}")
        write_manifest(settings.out, manifest)
        (settings.out / JOURNAL).unlink()
    return manifest


def find(settings: Settings) -> Sources:
    """What there is to be put into shards, whatever form it has."""
    source = settings.source
    if settings.annotations:
        return read_annotations(source, [Path(name) for name in settings.annotations.split(",")])
    if source.is_file() and source.suffix.lower() not in TABLES:
        raise ValueError(f"source={source}: a table is one of {', '.join(TABLES)}")
    return read_table(settings) if source.is_file() else scan(source)


def split(sources: list[Source], settings: Settings) -> dict[str, list[Source]]:
    """Shard name -> its images: the first in hash order are held out, the rest train."""
    ordered = sorted(sources, key=lambda source: source.rank)
    held_out = min(round(settings.validation * len(ordered)), len(ordered) - 1)
    plan = {}
    for part, members in zip(SPLITS, (ordered[held_out:], ordered[:held_out]), strict=True):
        for i in range(ceil(len(members) / settings.shard_samples)):
            chunk = members[i * settings.shard_samples : (i + 1) * settings.shard_samples]
            plan[f"{part}-{i:05d}.tar"] = chunk
    return plan


def summarise(notes: list[dict[str, Any]], settings: Settings, class_names: list[str]) -> dict[str, Any]:
    """The manifest."""
    splits = {}
    for part in SPLITS:
        rows = [note["row"] for note in notes if note["shard"].startswith(f"{part}-") and note["row"]["samples"]]
        splits[part] = {"samples": sum(row["samples"] for row in rows), "shards": rows}
    skipped = [row for note in notes for row in note["skipped"]]
    fields: Counter[str] = sum((Counter(note["fields"]) for note in notes), Counter())
    return {
        "name": settings.source.resolve().name,
        "samples": sum(facts["samples"] for facts in splits.values()),
        "fields": dict(sorted(fields.items())),
        "class_names": class_names,
        "splits": splits,
        "num_skipped": dict(sorted(Counter(row["kind"] for row in skipped).items())),
        "skipped": skipped,
    }


# -- the folder ----------------------------------------------------------------------------------------------------


def _refuse_strangers(out: Path, plan: dict[str, list[Source]]) -> None:
    """A shard of an earlier, larger run would be read along with the new ones."""
    strangers = sorted(path.name for path in out.glob("*.tar") if path.name not in plan)
    if strangers:
        raise ValueError(
            f"out={out} already holds {strangers[0]}, which is not of this run; delete it or choose another"
        )


@contextmanager
def _journal(out: Path) -> Iterator[tuple[IO[str], dict[str, Any]]]:
    """The file that notes each finished shard, locked, and what it says by shard; a line cut short is passed over."""
    with (out / JOURNAL).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"out={out}: another process is writing there") from None
        file.seek(0)
        done = {}
        for line in file.read().splitlines():
            try:
                note = json.loads(line)
            except json.JSONDecodeError:
                continue
            done[note["shard"]] = note
        file.write("\n")  # ends such a line
        yield file, done


def _sweep(out: Path) -> None:
    """Take away what a killed process left, and the manifest of what is about to change."""
    for path in [*out.glob("*.partial"), out / MANIFEST]:
        path.unlink(missing_ok=True)


# -- what is shown -------------------------------------------------------------------------------------------------


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f} images/s")


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("images", total=total)
        yield lambda count: progress.advance(task, count)


def report(manifest: dict[str, Any], settings: Settings, console: Console) -> None:
    """What was made, what was left out, and how to train on it."""
    for part, facts in manifest["splits"].items():
        size = sum(row["bytes"] for row in facts["shards"]) / 1e6
        console.print(f"{part}: {facts['samples']} samples in {len(facts['shards'])} shards, {size:.1f} MB")
    for kind, count in manifest["num_skipped"].items():
        names = [repr(row["name"]) for row in manifest["skipped"] if row["kind"] == kind]
        more = f" and {count - 5} more, all in {settings.out / MANIFEST}" if count > 5 else ""
        console.print(f"left out, {kind}: {', '.join(names[:5])}{more}", markup=False, soft_wrap=True)
    words = ["data=shards", f"data.train={settings.out}/train-*.tar"]
    if manifest["splits"]["validation"]["samples"]:
        words.append(f"data.validation={settings.out}/validation-*.tar")
    console.print("train with: " + " ".join(words), markup=False, soft_wrap=True)
