"""JSON of which the parts are counted before any is made: Python's objects take up to thirty times its bytes."""

import json
from typing import Any

from ldm.data.user_error import UserError

MAX_PARTS = 1 << 22  # commas, lists and objects; a manifest of 64 MiB has half as many


def load_json(content: bytes) -> Any:
    """What the text says. Raises ValueError if it is none, or of too many parts, RecursionError if too deep."""
    parts = sum(map(content.count, (b",", b"[", b"{")))
    if parts > MAX_PARTS:
        raise UserError(f"JSON of {parts} parts, {MAX_PARTS} allowed")
    return json.loads(content)
