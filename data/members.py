"""What the bytes of a member say: text, an entry of a JSON object, an array of floats. Any bytes at all may come;
what is not what it should be is a BadSample, and nothing is allocated because a header says so.
"""

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from data.errors import BadSample

NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_text(content: bytes) -> str:
    """UTF-8, without the byte order mark that some editors begin it with."""
    try:
        return content.decode("utf-8").lstrip("\ufeff")
    except UnicodeDecodeError:
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        like = "UTF-16" if wide else "Windows-1252, Latin-1 or another encoding of its kind"
        raise BadSample("not utf-8", f"not UTF-8: looks like {like}") from None


def read_entry(content: bytes, key: str, missing: str) -> Any:
    """The value under a key of a JSON object; without it the BadSample is of the kind `missing`."""
    text = read_text(content)
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of more than 4,300 digits
        raise BadSample("broken json", str(error)) from None
    if not isinstance(entries, Mapping) or entries.get(key) is None:
        raise BadSample(missing, f"the json has no {key!r}")
    return entries[key]


def is_unicode(text: str) -> bool:
    """Whether it can be written down: JSON can spell half a surrogate pair, which no encoding holds."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_floats(content: bytes) -> np.ndarray:
    """The floats [N, D] of an .npy file, where the size that its header claims is that of its body."""
    file = io.BytesIO(content)
    try:
        read_header = NPY_HEADERS[np.lib.format.read_magic(file)]
        shape, in_columns, dtype = read_header(file)
    except Exception as error:  # it parses the header as Python's literals, and raises nearly anything
        raise BadSample("broken array", f"{type(error).__name__}: {error}") from None
    if len(shape) != 2 or dtype.kind != "f" or min(shape) < 0:
        raise BadSample("broken array", "expected floats of the shape [tokens, width]")
    body = content[file.tell() :]
    if shape[0] * shape[1] * dtype.itemsize != len(body):
        raise BadSample("broken array", f"{len(body)} bytes for the shape {list(shape)}")
    return np.ndarray(shape, dtype, body, order="F" if in_columns else "C")
