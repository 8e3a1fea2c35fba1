"""One shard: its images are read, checked, perhaps scaled down, and written. Runs in any process; knows no others."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from data.decoding import decode_image
from data.errors import BadSample
from data.making.sources import Source
from data.writing import sha256_of, write_shard


@dataclass(frozen=True)
class Job:
    """A shard to be made. `done` is what an earlier run noted of it."""

    path: Path
    sources: tuple[Source, ...]
    size: int
    quality: int
    done: dict[str, Any] | None = None


def make_shard(job: Job, advance: Callable[[int], None]) -> dict[str, Any]:
    """What there is to note: `inputs` (a digest), the manifest's `row`, who was `skipped`, `fields` with their counts.

    An earlier run's shard is left as it is if its inputs and its bytes still are the same. `advance` hears of each
    image. A shard without samples is not kept.
    """
    inputs = _digest(job)
    if job.done is not None and job.done["inputs"] == inputs and _intact(job.path, job.done["row"]):
        advance(len(job.sources))
        return job.done
    skipped: list[dict[str, str]] = []
    fields: Counter[str] = Counter()
    row = write_shard(job.path, _samples(job, skipped, fields, advance))
    if row["samples"] == 0:
        job.path.unlink()
    return {"shard": job.path.name, "inputs": inputs, "row": row, "skipped": skipped, "fields": dict(fields)}


def _digest(job: Job) -> str:
    """Changes when the shard would have to be written anew."""
    facts: list[Any] = [job.size, job.quality]
    for source in job.sources:
        state = source.path.stat() if source.path.is_file() else None
        facts += [source.name, source.facts, source.problem, state and (state.st_size, state.st_mtime_ns)]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()


def _intact(path: Path, row: dict[str, Any]) -> bool:
    """Whether a shard is still what its row says; one without samples was not kept."""
    return row["samples"] == 0 or (path.exists() and sha256_of(path) == row["sha256"])


def _samples(
    job: Job, skipped: list[dict[str, str]], fields: Counter[str], advance: Callable[[int], None]
) -> Iterator[dict[str, Any]]:
    """Samples as webdataset's writer takes them; appends what cannot be used to `skipped`."""
    for source in job.sources:
        try:
            extension, content = _image(source, job)
        except (BadSample, OSError) as error:
            kind = error.kind if isinstance(error, BadSample) else "unreadable file"
            skipped.append({"name": source.name, "kind": kind, "reason": str(error)[:200]})
        else:
            facts = {**source.facts, "name": source.name}
            fields.update([extension, *(f"json: {key}" for key in facts)])
            text = json.dumps(facts, ensure_ascii=False, default=str)
            yield {"__key__": source.key, extension: content, "json": text.encode("utf-8", "backslashreplace")}
        advance(1)


def _image(source: Source, job: Job) -> tuple[str, bytes]:
    """Extension and content of the image member; raises BadSample or OSError."""
    if source.problem is not None:
        raise BadSample(source.problem)
    content = source.path.read_bytes()
    image = decode_image(content)
    if not job.size:
        return source.path.suffix.lower()[1:], content
    factor = min(1.0, job.size / min(image.size))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    file = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(file, "WEBP", quality=job.quality)
    return "webp", file.getvalue()
