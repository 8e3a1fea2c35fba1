"""A seal: the digest that a JSON or YAML file holds of its other content, so that edits and damage are detected.

It is not a signature: anyone can compute the seal of a changed file.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.data.user_error import UserError

SEAL = "seal"


def seal_of(content: Mapping[str, Any]) -> str:
    """SHA-256 over the content of a mapping without its seal, whatever the order of the keys."""
    plain = json.loads(json.dumps({key: value for key, value in content.items() if key != SEAL}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping with its seal, which comes last."""
    return {**{key: value for key, value in content.items() if key != SEAL}, SEAL: seal_of(content)}


def check_seal(content: Mapping[str, Any], path: Path) -> None:
    """Raises ValueError if the content of the file `path` does not match its seal.

    A file that is older than seals has none and is accepted.
    """
    if SEAL in content and content[SEAL] != seal_of(content):
        raise UserError(f"{path}: edited or damaged since it was written (its seal is another); put it back as it was")
