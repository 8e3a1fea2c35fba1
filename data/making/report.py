"""Output of make_shards: progress, and at the end what was made, what was left out, and how to train on it."""

import glob
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ldm.data.errors import printable
from ldm.data.making.settings import MAP, Settings
from ldm.data.writing import MANIFEST

NUM_NAMED = 5


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f} images/s")


@contextmanager
def progress(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """A bar that is told how many images are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("images", total=total)
        yield lambda count: bar.advance(task, count)


def report(manifest: dict[str, Any], settings: Settings, console: Console) -> None:
    """Print the end of the run, one fact a line; names out of the data are escaped."""
    for line in _lines(manifest, settings):
        console.out(printable(line), highlight=False)


def _lines(manifest: dict[str, Any], settings: Settings) -> Iterator[str]:
    for part, facts in manifest["splits"].items():
        size = sum(row["bytes"] for row in facts["shards"]) / 1e6
        yield f"{part}: {facts['samples']} samples in {len(facts['shards'])} shards, {size:.1f} MB"
    for kind, count in manifest["num_skipped"].items():
        names = [repr(row["name"]) for row in manifest["skipped"] if row["kind"] == kind]
        more = f" and {count - NUM_NAMED} more, all in {settings.out / MANIFEST}" if count > NUM_NAMED else ""
        yield f"left out, {kind}: {', '.join(names[:NUM_NAMED])}{more}"
    for note in manifest["notes"]:
        yield f"note: {note}"
    words = " ".join(map(quoted, _train_words(manifest, settings)))
    yield f"train with: {words}"
    yield "beside an experiment=, and task.keep_latents=false for a diffusion model, or data.horizontal_flip_prob=0"
    num_classes, fields = len(manifest["class_names"]), manifest["fields"]
    if num_classes and "json: label" in fields:
        words = f"'conditioner=[label]' conditioner.label.num_classes={num_classes}"
        yield f"to condition on the class: {words} (the names of the classes are in {MANIFEST})"
    if MAP in fields and settings.num_classes:
        count = settings.num_classes + (settings.unlabelled >= 0)
        yield f"to condition on the map: 'conditioner=[semantic_map]' conditioner.semantic_map.num_classes={count}"
    if "json: objects" in fields and "json: caption" in fields:
        yield "captions in the place of boxes: data=shards"


def quoted(word: str) -> str:
    """A word quoted for bash, without any character that a terminal would not show."""
    if word.isprintable():
        return shlex.quote(word)
    escapes = {"\\": "\\\\", "'": "\\'"}
    shown = (c if c.isprintable() else "".join(map("\\x{:02x}".format, os.fsencode(c))) for c in word)
    return "$'" + "".join(escapes.get(c, c) for c in shown) + "'"


def _train_words(manifest: dict[str, Any], settings: Settings) -> list[str]:
    """The words of train.py that read these shards, as the program gets them."""
    fields, num_classes = manifest["fields"], len(manifest["class_names"])
    words = ["data=image_shards"]
    if MAP in fields and settings.num_classes:
        words = ["data=segmented_shards"]
    elif "json: objects" in fields:
        words = ["data=layout_shards", f"data.fields.layout.num_classes={num_classes}"]
    elif "json: caption" in fields:
        words = ["data=labelled_shards" if num_classes else "data=shards"]
    out = glob.escape(str(settings.out.absolute()))  # a folder may be called draft*, or ~
    words.append(f"data.train={out}/train-*.tar")
    if manifest["splits"]["validation"]["samples"]:
        words.append(f"data.validation={out}/validation-*.tar")
    return words
