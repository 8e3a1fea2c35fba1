"""JSON whose values are counted before any is built: Python's objects take up to thirty times the text's bytes."""

import json
from typing import Any

from ldm.data.user_error import UserError

MAX_PARTS = 1 << 22  # commas, lists and objects; a manifest of 64 MiB has half as many


def load_json(content: bytes) -> Any:
    """Parse a text. Raises ValueError if it is not JSON or has too many values, RecursionError if it nests too deep."""
    parts = sum(map(content.count, (b",", b"[", b"{")))
    if parts > MAX_PARTS:
        raise UserError(f"JSON of {parts} parts, {MAX_PARTS} allowed")
    return json.loads(content)
