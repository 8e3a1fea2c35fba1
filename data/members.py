"""Parses the bytes of a member: text, an entry of a JSON object, an array of floats. The bytes are untrusted:
malformed ones are a BadSample, and the sizes that a header claims are checked before memory is allocated.
"""

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ldm.data.errors import BadSample
from ldm.data.image_bytes import format_name

# Python's objects take up to thirty times the bytes of their JSON; a caption, or the objects of a scene, take kilobytes
MAX_TEXT_BYTES = 1 << 22
WIDE_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
# which bytes of four are mostly zero, for text in Western scripts
ZEROS: dict[tuple[bool, ...], str] = {
    (False, True, False, True): "UTF-16 (little-endian, without a byte order mark)",
    (True, False, True, False): "UTF-16 (big-endian, without a byte order mark)",
    (False, True, True, True): "UTF-32 (little-endian, without a byte order mark)",
    (True, True, True, False): "UTF-32 (big-endian, without a byte order mark)",
}
AMBIGUOUS = object()
NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_text(content: bytes, max_bytes: int | None = MAX_TEXT_BYTES) -> str:
    """UTF-8, without the byte order mark that some editors begin it with.

    Raises BadSample, which says what the bytes look like instead, or that they are too many.
    """
    if max_bytes is not None and len(content) > max_bytes:
        raise BadSample("text too long", f"{len(content)} bytes of text, {max_bytes} allowed")
    wide = _wide_encoding(content)
    if wide is not None:
        raise BadSample("not utf-8", f"not UTF-8: looks like {wide}; save it as UTF-8")
    try:
        return content.decode("utf-8").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        form = format_name(content)
        like = f"a {form} file" if form else "Windows-1252, Latin-1 or another encoding of its kind"
        raise BadSample(
            "not utf-8", f"not UTF-8: looks like {like} (byte {content[error.start]:#04x} at {error.start})"
        ) from None


def _wide_encoding(content: bytes) -> str | None:
    """UTF-16 or UTF-32, recognised by the byte order mark or by zero bytes where text has none."""
    for mark, name in WIDE_MARKS:
        if content.startswith(mark):
            return name
    start = content[:256]
    if b"\0" not in start:
        return "something other than text (it holds zero bytes)" if b"\0" in content else None
    zeros = [start[place::4].count(0) * 8 > len(start) for place in range(4)]  # more than half of them
    return ZEROS.get(tuple(zeros), "something other than text (it holds zero bytes)")


def read_entries(content: bytes) -> Mapping[str, Any]:
    """The JSON object that a member holds. A key that is there twice, with different values, is AMBIGUOUS."""
    entries = _parsed(content, _object)
    return entries if isinstance(entries, Mapping) else {}


def read_object(content: bytes) -> Mapping[str, Any]:
    """The JSON object that a member holds, to be written again: BadSample for none, and for a key that is there twice
    with different values.
    """
    entries = _parsed(content, _unambiguous)
    if not isinstance(entries, Mapping):
        raise BadSample("broken json", "not a JSON object")
    return entries


def _parsed(content: bytes, to_object: Callable[[list[tuple[str, Any]]], dict[str, Any]]) -> Any:
    if len(content) > MAX_TEXT_BYTES:
        raise BadSample("broken json", f"{len(content)} bytes of JSON, {MAX_TEXT_BYTES} allowed")
    text = read_text(content)
    try:
        return json.loads(text, object_pairs_hook=to_object)
    except BadSample:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of more than 4,300 digits
        raise BadSample("broken json", str(error)) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        for name, value in pairs:
            if value is not AMBIGUOUS and value != found[name]:
                found[name] = AMBIGUOUS
    return found


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = _object(pairs)
    for name, value in found.items():
        if value is AMBIGUOUS:
            raise BadSample("broken json", f"the json has {name!r} twice, and not the same")
    return found


def entry(entries: Mapping[str, Any], key: str, missing: str) -> Any:
    """The value under a key; without it the BadSample is of the kind `missing`."""
    value = entries.get(key)
    if value is None:
        raise BadSample(missing, f"the json has no {key!r}")
    if value is AMBIGUOUS:
        raise BadSample("broken json", f"the json has {key!r} twice, and not the same")
    return value


def read_entry(content: bytes, key: str, missing: str) -> Any:
    """The value under a key of a JSON object; without it the BadSample is of the kind `missing`."""
    return entry(read_entries(content), key, missing)


def is_unicode(text: str) -> bool:
    """Whether it can be written down: JSON can spell half a surrogate pair, which no encoding holds."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def says_something(text: str) -> bool:
    """Whether there is a letter to be seen in it: a byte order mark, or a space of no width, is none."""
    return any(letter.isprintable() and not letter.isspace() for letter in text)


def read_floats(content: bytes) -> np.ndarray:
    """The floats [N, D] of an .npy file, where the size that its header claims is that of its body."""
    file = io.BytesIO(content)
    try:
        read_header = NPY_HEADERS[np.lib.format.read_magic(file)]
        shape, in_columns, dtype = read_header(file)
    except Exception as error:  # it parses the header as Python's literals, and raises nearly anything
        raise BadSample("broken array", f"its header cannot be read ({type(error).__name__})") from None
    if len(shape) != 2 or dtype.kind != "f" or min(shape) < 0:
        raise BadSample("broken array", "expected floats of the shape [tokens, width]")
    body = content[file.tell() :]
    if shape[0] * shape[1] * dtype.itemsize != len(body):
        raise BadSample("broken array", f"{len(body)} bytes for the shape {list(shape)}")
    return np.ndarray(shape, dtype, body, order="F" if in_columns else "C")
