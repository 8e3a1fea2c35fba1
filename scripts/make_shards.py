"""Turn a folder of images into WebDataset shards with a manifest.

python scripts/make_shards.py source=PHOTOS out=SHARDS [size=256] [validation=0.05] [shard_samples=1000] [quality=95]

An image's caption is the text file beside it (cat.jpg, cat.txt). Images in sub-folders also get a class: the first
folder's name and its place in the alphabet; without a text file that name is the caption. With size= images are scaled
down (shortest side, never up) and stored as WebP, otherwise their files are copied as they are. Unreadable images and
images without a caption are left out, counted and named in the manifest. Stopped and started again, it goes on.
"""

import difflib
import hashlib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from math import ceil
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data.errors import BadSample  # noqa: E402
from data.transforms import IMAGE_EXTENSIONS, decode_image  # noqa: E402
from data.writing import sha256_of, write_manifest, write_shard  # noqa: E402

PROGRESS = "progress.json"


@dataclass(frozen=True)
class Settings:
    """What the command line may say."""

    source: Path
    out: Path
    size: int = 0  # 0: keep the files as they are
    validation: float = 0.05
    shard_samples: int = 1000
    quality: int = 95


@dataclass(frozen=True)
class Source:
    """One image and what is known about it."""

    path: Path
    name: str  # relative to the source folder
    caption: str | None
    label: int | None
    class_name: str | None

    @property
    def rank(self) -> str:
        """A place in an order that mixes folders and depends on the name alone."""
        return hashlib.sha256(self.name.encode()).hexdigest()

    @property
    def key(self) -> str:
        """A webdataset key: no dots, no slashes, short, and unlike any other image's."""
        stem = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in self.path.stem)
        return f"{stem[:60]}-{self.rank[:10]}"


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return
    try:
        make_shards(parse(arguments), Console())
    except ValueError as error:
        raise SystemExit(f"make_shards: {error}") from None


def parse(arguments: list[str]) -> Settings:
    """key=value words to settings; ValueError names what is wrong and the nearest key."""
    kinds = {field.name: field.type for field in fields(Settings)}
    values: dict[str, Any] = {}
    for word in arguments:
        key, equals, text = word.partition("=")
        if key not in kinds or not equals:
            near = difflib.get_close_matches(key, kinds, n=1)
            hint = f"; did you mean {near[0]}=?" if near else ""
            raise ValueError(f"{word!r} is none of {', '.join(f'{name}=' for name in kinds)}{hint}")
        try:
            values[key] = kinds[key](text)
        except ValueError:
            raise ValueError(f"{key}={text!r} is not a number") from None
    missing = [field.name for field in fields(Settings) if field.default is MISSING and field.name not in values]
    if missing:
        raise ValueError(f"{missing[0]}= is missing; see --help")
    settings = Settings(**values)
    if not 0 <= settings.validation < 1:
        raise ValueError(f"validation={settings.validation} must be at least 0 and below 1")
    if settings.size < 0 or settings.shard_samples < 1 or not 1 <= settings.quality <= 100:
        raise ValueError("size= must be at least 0, shard_samples= at least 1, quality= between 1 and 100")
    return settings


def make_shards(settings: Settings, console: Console) -> dict[str, Any]:
    """Write all shards and the manifest; returns the manifest."""
    sources, class_names = scan(settings.source)
    plan = split(sources, settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    refuse_strangers(settings.out, plan)
    done = read_progress(settings.out)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("images", total=len(sources))
        for name, members in plan.items():
            inputs = digest(members, settings)
            if done.get(name, {}).get("inputs") != inputs or not intact(settings.out / name, done[name]["row"]):
                done[name] = {"inputs": inputs, **write(settings.out / name, members, settings)}
                (settings.out / PROGRESS).write_text(json.dumps(done))
            progress.advance(task, len(members))
    manifest = summarise({name: done[name] for name in plan}, settings, class_names)
    if not manifest["samples"]:
        raise ValueError(f"none of the {len(sources)} images can be used; the first: {manifest['skipped'][0]}")
    write_manifest(settings.out, manifest)
    (settings.out / PROGRESS).unlink()
    report(manifest, settings, console)
    return manifest


def scan(folder: Path) -> tuple[list[Source], list[str]]:
    """All images below a folder with what their names and neighbours say, and the class names."""
    if not folder.is_dir():
        raise ValueError(f"source={folder} is not a folder")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower()[1:] in IMAGE_EXTENSIONS and path.is_file())
    if not paths:
        raise ValueError(f"source={folder} holds no images ({', '.join(IMAGE_EXTENSIONS)})")
    names = [path.relative_to(folder) for path in paths]
    class_names = sorted({name.parts[0] for name in names if len(name.parts) > 1})
    sources = []
    for path, name in zip(paths, names, strict=True):
        class_name = name.parts[0] if len(name.parts) > 1 else None
        label = class_names.index(class_name) if class_name is not None else None
        sources.append(Source(path, name.as_posix(), caption_of(path, class_name), label, class_name))
    return sources, class_names


def caption_of(path: Path, class_name: str | None) -> str | None:
    """The text beside an image, else its class in words, else None; undecodable text counts as none."""
    text = path.with_suffix(".txt")
    if text.exists():
        try:
            return text.read_text(encoding="utf-8").strip() or None
        except UnicodeDecodeError:
            return None
    return class_name.replace("_", " ").replace("-", " ") if class_name is not None else None


def split(sources: list[Source], settings: Settings) -> dict[str, list[Source]]:
    """Shard name -> its images: the first in hash order are held out, the rest train."""
    ordered = sorted(sources, key=lambda source: source.rank)
    held_out = min(round(settings.validation * len(ordered)), len(ordered) - 1)
    plan = {}
    for part, members in (("train", ordered[held_out:]), ("validation", ordered[:held_out])):
        for i in range(ceil(len(members) / settings.shard_samples)):
            chunk = members[i * settings.shard_samples : (i + 1) * settings.shard_samples]
            plan[f"{part}-{i:05d}.tar"] = chunk
    return plan


def refuse_strangers(out: Path, plan: dict[str, list[Source]]) -> None:
    """A shard of an earlier, larger run would be read along with the new ones."""
    strangers = sorted(path.name for path in out.glob("*.tar") if path.name not in plan)
    if strangers:
        raise ValueError(
            f"out={out} already holds {strangers[0]}, which is not of this run; delete it or choose another"
        )


def read_progress(out: Path) -> dict[str, Any]:
    """What an interrupted run has finished; nothing when its note was cut short."""
    path = out / PROGRESS
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except json.JSONDecodeError:
        return {}


def digest(members: list[Source], settings: Settings) -> str:
    """Changes when a shard would have to be written anew."""
    facts = [settings.size, settings.quality]
    for source in members:
        state = source.path.stat()
        facts += [source.name, source.caption, source.label, state.st_size, state.st_mtime_ns]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def intact(path: Path, row: dict[str, Any]) -> bool:
    """Whether a shard is still what its row says; one without samples was not kept."""
    return row["samples"] == 0 or (path.exists() and sha256_of(path) == row["sha256"])


def write(path: Path, members: list[Source], settings: Settings) -> dict[str, Any]:
    """Write one shard; returns its row and what was left out. A shard without samples is not kept."""
    skipped: list[dict[str, str]] = []
    row = write_shard(path, encode(members, settings, skipped))
    if row["samples"] == 0:
        path.unlink()
    return {"row": row, "skipped": skipped}


def encode(members: list[Source], settings: Settings, skipped: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """Samples as webdataset's writer takes them; appends what cannot be used to `skipped`."""
    for source in members:
        if source.caption is None:
            skipped.append({"name": source.name, "kind": "missing caption"})
            continue
        content = source.path.read_bytes()
        try:
            image = decode_image(content)
        except BadSample as error:
            skipped.append({"name": source.name, "kind": error.kind})
            continue
        extension = source.path.suffix.lower()[1:]
        if settings.size:
            content, extension = scaled(image, settings), "webp"
        facts = {"caption": source.caption, "class": source.class_name, "label": source.label, "name": source.name}
        text = json.dumps({key: value for key, value in facts.items() if value is not None}, ensure_ascii=False)
        yield {"__key__": source.key, extension: content, "json": text.encode()}


def scaled(image: Image.Image, settings: Settings) -> bytes:
    """The image as WebP with its shortest side at most `size`."""
    factor = min(1.0, settings.size / min(image.size))
    size = (round(image.width * factor), round(image.height * factor))
    file = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(file, "WEBP", quality=settings.quality)
    return file.getvalue()


def summarise(done: dict[str, Any], settings: Settings, class_names: list[str]) -> dict[str, Any]:
    """The manifest."""
    splits = {}
    for part in ("train", "validation"):
        rows = [entry["row"] for name, entry in done.items() if name.startswith(part) and entry["row"]["samples"]]
        splits[part] = {"samples": sum(row["samples"] for row in rows), "shards": rows}
    return {
        "name": settings.source.resolve().name,
        "samples": sum(facts["samples"] for facts in splits.values()),
        "fields": {"json": "caption, name; in class folders also class and label (place in class_names)"},
        "class_names": class_names,
        "splits": splits,
        "skipped": [row for entry in done.values() for row in entry["skipped"]],
    }


def report(manifest: dict[str, Any], settings: Settings, console: Console) -> None:
    """What was made, what was left out, and how to train on it."""
    for part, facts in manifest["splits"].items():
        size = sum(row["bytes"] for row in facts["shards"]) / 1e6
        console.print(f"{part}: {facts['samples']} samples in {len(facts['shards'])} shards, {size:.1f} MB")
    for row in manifest["skipped"][:20]:
        console.print(f"left out: {row['name']} ({row['kind']})", markup=False)
    if len(manifest["skipped"]) > 20:
        console.print(f"... and {len(manifest['skipped']) - 20} more, all in {settings.out / 'manifest.json'}")
    words = ["data=shards", f"data.train={settings.out}/train-*.tar"]
    if manifest["splits"]["validation"]["samples"]:
        words.append(f"data.validation={settings.out}/validation-*.tar")
    console.print("train with: " + " ".join(words), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main(sys.argv[1:])
