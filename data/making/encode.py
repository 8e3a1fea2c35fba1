"""One shard: its images are read, checked, perhaps scaled down, and written. Runs in any process; knows no others."""

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.data.decoding import FORMATS, decode_image, read_picture
from ldm.data.errors import BadSample
from ldm.data.making.files import MAX_IMAGE_BYTES, MAX_TEXT_BYTES, format_of, read_file
from ldm.data.making.maps import Maps
from ldm.data.making.settings import MAP
from ldm.data.making.sources import LeftOut, Problem, Source
from ldm.data.making.upright_boxes import upright_objects
from ldm.data.writing import sha256_of, write_shard

MAX_WEBP_SIDE = 16383  # pixels; the format has no room for more


@dataclass(frozen=True)
class Job:
    """A shard to be made. `done` is what an earlier run noted of it, `finished` its row in the manifest of a finished
    run, which the shard must come to again. `members` are the endings of the files beside an image that go with it.
    """

    path: Path
    sources: tuple[Source, ...]
    size: int
    quality: int
    done: dict[str, Any] | None = None
    finished: dict[str, Any] | None = None
    members: tuple[str, ...] = ()
    maps: Maps | None = None


def make_shard(job: Job, advance: Callable[[int], None]) -> dict[str, Any]:
    """Write a shard; returns a record: `inputs` (a digest), the manifest's `row`, the `skipped`, counts of `fields`.

    An earlier run's shard is left as it is if its inputs and its bytes still are the same. `advance` hears of each
    image. A shard without samples is not kept.
    """
    inputs = _digest(job)
    if job.done is not None and job.done["inputs"] == inputs and _intact(job.path, job.done["row"]):
        advance(len(job.sources))
        return job.done
    skipped: list[LeftOut] = []
    fields: Counter[str] = Counter()
    row = write_shard(job.path, _samples(job, skipped, fields, advance), job.finished)
    if row["samples"] == 0:
        job.path.unlink()
    rows = [left_out._asdict() for left_out in skipped]
    return {"shard": job.path.name, "inputs": inputs, "row": row, "skipped": rows, "fields": dict(fields)}


def _digest(job: Job) -> str:
    """A digest of the shard's inputs: if it changes, the shard has to be written again."""
    facts: list[Any] = [job.size, job.quality, *job.members, *([] if job.maps is None else astuple(job.maps)[1:])]
    for source in job.sources:
        facts += [
            source.name,
            source.facts,
            source.problem,
            source.raster,
            None if source.problem else _state(source.path),
        ]
        facts += [_state(_beside(source, member)) for member in job.members]
        facts += [] if job.maps is None or source.problem else [_map_state(job.maps, source)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _state(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except OSError:  # it has been deleted since it was found; reading it reports that
        return None
    return state.st_size, state.st_mtime_ns


def _map_state(maps: Maps, source: Source) -> tuple[int, int] | None:
    try:
        return _state(maps.path(source))
    except BadSample:  # its name leads out of the folder; reading it reports that
        return None


def _intact(path: Path, row: dict[str, Any]) -> bool:
    """Whether a shard still matches its row in the manifest; one without samples was not kept."""
    return row["samples"] == 0 or (path.exists() and sha256_of(path) == row["sha256"])


def _samples(
    job: Job, skipped: list[LeftOut], fields: Counter[str], advance: Callable[[int], None]
) -> Iterator[dict[str, Any]]:
    """Samples as webdataset's writer takes them; appends what cannot be used to `skipped`."""
    for source in job.sources:
        try:
            if source.problem is not None:
                raise BadSample(*source.problem)
            extension, image, content = _image(source, job)
            facts = {**_facts(source, image, kept=not job.size), "name": source.name}
            text = json.dumps(facts, ensure_ascii=False).encode("utf-8", "backslashreplace")
            further = {member: _further(source, member) for member in job.members}
            if job.maps is not None:
                further[MAP] = job.maps.read(source, image, _size(content) if job.size else None)
            if len(text) > MAX_TEXT_BYTES:
                raise BadSample("too much text", f"{len(text)} bytes are known about it, {MAX_TEXT_BYTES} are allowed")
        except BadSample as error:
            skipped.append(LeftOut(source.name, *Problem.of(error)))
        else:
            fields.update([extension, *further, *(f"json: {key}" for key in facts)])
            yield {"__key__": source.key, extension: content, **further, "json": text}
        advance(1)


def _size(content: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(content)).size


def _beside(source: Source, member: str) -> Path:
    return source.path.with_name(f"{source.path.stem}.{member}")


def _further(source: Source, member: str) -> bytes:
    """The file beside an image with this ending, as it is; BadSample where there is none."""
    path = _beside(source, member)
    if not path.exists():
        raise BadSample("missing member", f"no {path.name} beside it")
    try:
        return read_file(path, MAX_IMAGE_BYTES)
    except BadSample as error:
        raise BadSample(error.kind, f"{path.name}: {error}") from None


def _facts(source: Source, content: bytes, kept: bool) -> dict[str, Any]:
    """What is known about the image; its boxes are turned with it. With a file that is `kept` as it is, turned by EXIF,
    goes the (upright) size that they belong to.
    """
    facts = json.loads(source.facts)
    if source.raster is None:
        return facts
    lies = read_picture(content, image_size=1)
    facts["objects"] = upright_objects(facts["objects"], source.raster, lies.stored, lies.orientation)
    if kept and lies.orientation != 1:
        facts["width"], facts["height"] = lies.upright
    return facts


def _image(source: Source, job: Job) -> tuple[str, bytes, bytes]:
    """Extension of the image member, the file's content and the member's; raises BadSample."""
    content = read_file(source.path, MAX_IMAGE_BYTES)
    try:
        image = decode_image(content)
    except BadSample as error:
        raise BadSample(error.kind, _reason(error, content)) from None
    if not job.size:
        return source.path.suffix.lower()[1:], content, content
    factor = min(1.0, job.size / min(image.size))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    form = "WEBP" if max(size) <= MAX_WEBP_SIDE else "PNG"
    file = io.BytesIO()
    try:
        image.resize(size, Image.Resampling.LANCZOS).save(file, form, quality=job.quality)
    except (OSError, ValueError, MemoryError) as error:
        raise BadSample("cannot be written", f"{size[0]}x{size[1]} as {form}: {error}") from None
    return form.lower(), content, file.getvalue()


def _reason(error: BadSample, content: bytes) -> str:
    """For people, and the same on every run: Pillow's reasons may hold addresses in memory."""
    reason = re.sub(r"<[^<>]* object at 0x[0-9a-fA-F]+>", "it", str(error))[:200]
    if "cannot identify image" not in reason:
        return reason
    form = format_of(content)
    seen = f"a {form} file" if form and form.upper() not in FORMATS else f"begins with {content[:12]!r}"
    return f"not to be read as {', '.join(FORMATS)}: {seen}" if content else "the file is empty"
