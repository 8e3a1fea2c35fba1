"""Byte ranges of remote objects, each verified to be the range asked for, of the known version.

Over HTTP and from S3 the answer itself says which bytes of which version it holds. Of other file systems' objects the
version is looked at again now and then.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fsspec

from ldm.data.attempts import WrongAnswer
from ldm.data.objects import CHANGED, Facts, Span

AT_ONCE = 256  # requests to one file system
LOOK_AGAIN_SECONDS = 60.0
THREADS = 16
# What names the version of an object, by the file systems' own names, the most telling first.
STAMPS = ("ETag", "etag", "Last-Modified", "LastModified", "updated", "mtime", "created")
RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
WHOLE = ": the server sends all of it where a part is asked for; byte ranges are needed"
SATISFIED, PARTIAL, MISSING, UNSATISFIABLE = 200, 206, 404, 416

_looked: dict[str, float] = {}  # when the version was last checked, for objects whose responses do not state it


def stamp_of(known: Mapping[str, Any]) -> str:
    """The version that headers, or a file system's information, tell; empty if none."""
    return next((str(known[name]) for name in STAMPS if known.get(name)), "")


def read(system: Any, paths: Sequence[str], spans: Sequence[Span]) -> list[bytes | BaseException]:
    """The bytes of each span, all requested at the same time; an exception in place of each that failed."""
    protocols = (system.protocol,) if isinstance(system.protocol, str) else system.protocol
    answer = next((ANSWERS[name] for name in protocols if name in ANSWERS), None)
    if answer is None:
        return _read_and_look(system, paths, spans)
    return fsspec.asyn.sync(system.loop, _together, answer, system, paths, spans)


async def _together(
    answer: Callable[..., Awaitable[bytes]], system: Any, paths: Sequence[str], spans: Sequence[Span]
) -> list[bytes | BaseException]:
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(path: str, span: Span) -> bytes:
        async with turns:
            return await answer(system, path, span)

    return await asyncio.gather(*map(one, paths, spans), return_exceptions=True)


async def _over_http(system: Any, path: str, span: Span) -> bytes:
    options = {**system.kwargs}
    asked = {"Range": f"bytes={span.start}-{span.stop - 1}", "Accept-Encoding": "identity"}
    options["headers"] = {**(options.get("headers") or {}), **asked}
    session = await system.set_session()
    async with session.get(system.encode_url(path), **options) as reply:
        if reply.status == MISSING:
            raise FileNotFoundError(path)
        if reply.status == UNSATISFIABLE:
            raise WrongAnswer(CHANGED)
        reply.raise_for_status()
        _check(span, reply.headers.get("Content-Range"), reply.status == SATISFIED, stamp_of(reply.headers))
        size = span.stop - span.start
        try:
            content = await reply.content.readexactly(size)
        except asyncio.IncompleteReadError as error:
            raise WrongAnswer(f": {len(error.partial)} of {size} bytes came") from error
        if await reply.content.read(1):
            raise WrongAnswer(f": more than the {size} bytes asked for came")
        return content


async def _from_s3(system: Any, path: str, span: Span) -> bytes | BaseException:
    bucket, key, version = system.split_path(path)
    which = {"Bucket": bucket, "Key": key, **({"VersionId": version} if version else {})}
    reply = await system._call_s3("get_object", **which, Range=f"bytes={span.start}-{span.stop - 1}")
    try:
        told = reply.get("ContentRange")
        _check(span, told, told is None, stamp_of(reply))
        if reply.get("ContentLength", 0) > span.stop - span.start:
            raise WrongAnswer(f": more than the {span.stop - span.start} bytes asked for came")
        content = await reply["Body"].read()
    finally:
        reply["Body"].close()
    return _of_length(content, span)


ANSWERS: dict[str, Callable[..., Awaitable[bytes | BaseException]]] = {
    "http": _over_http,
    "https": _over_http,
    "s3": _from_s3,
}


def _check(span: Span, told: str | None, whole: bool, stamp: str) -> None:
    """Raises WrongAnswer unless the answer's headers say that it is this span of the known version."""
    asked = f"{span.start}-{span.stop - 1}"
    if not _agree(stamp, span.facts.stamp):
        raise WrongAnswer(CHANGED)
    if whole:
        if (span.start, span.stop) != (0, span.facts.num_bytes):
            raise WrongAnswer(WHOLE)
        return
    found = RANGE.fullmatch(told or "")
    if found is None or f"{int(found[1])}-{int(found[2])}" != asked:
        sent = repr(told) if told else "bytes that it does not name"
        raise WrongAnswer(f": the server sent {sent} where bytes {asked} were asked for")
    if found[3] not in ("*", str(span.facts.num_bytes)):
        raise WrongAnswer(CHANGED)


def _agree(stamp: str, known: str) -> bool:
    """Whether two versions are the same, or cannot be compared: no version, or a time where the other is a tag."""
    stamp, known = stamp.removeprefix("W/"), known.removeprefix("W/")
    return not stamp or not known or stamp == known or ('"' in stamp) != ('"' in known)


def _read_and_look(system: Any, paths: Sequence[str], spans: Sequence[Span]) -> list[bytes | BaseException]:
    starts, stops = [span.start for span in spans], [span.stop for span in spans]
    try:
        found = system.cat_ranges(list(paths), starts, stops, on_error="return")
    except Exception as error:  # file systems raise whatever their clients do
        return [error] * len(spans)
    contents = [_of_length(content, span) for content, span in zip(found, spans, strict=True)]
    changed = _changed(system, dict(zip(paths, (span.facts for span in spans), strict=True)))
    return [changed.get(path, content) for path, content in zip(paths, contents, strict=True)]


def _changed(system: Any, known: Mapping[str, Facts]) -> dict[str, BaseException]:
    """The objects of another version than the known one; each is looked at once in LOOK_AGAIN_SECONDS."""
    now = time.monotonic()
    due = [path for path, facts in known.items() if facts.stamp and now - _looked.get(path, -1e9) > LOOK_AGAIN_SECONDS]

    def differs(path: str) -> BaseException | None:
        try:
            system.invalidate_cache(path)  # of listings
            info = system.info(path)
        except Exception as error:  # file systems raise whatever their clients do
            return error
        same = info.get("size") == known[path].num_bytes and _agree(stamp_of(info), known[path].stamp)
        return None if same else WrongAnswer(CHANGED)

    with ThreadPoolExecutor(THREADS) as pool:
        seen = dict(zip(due, pool.map(differs, due), strict=True))
    _looked.update({path: now for path, problem in seen.items() if problem is None})
    return {path: problem for path, problem in seen.items() if problem is not None}


def _of_length(content: bytes | BaseException, span: Span) -> bytes | BaseException:
    if isinstance(content, BaseException) or len(content) == span.stop - span.start:
        return content
    if len(content) > span.stop - span.start:
        return WrongAnswer(WHOLE)
    return WrongAnswer(CHANGED)
