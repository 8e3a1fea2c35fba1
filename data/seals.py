"""A seal: the digest that a JSON or YAML file holds of what else it says, so that an edited or damaged one is known.

It is no signature: whoever means to deceive writes another.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.data.user_error import UserError

SEAL = "seal"


def seal_of(content: Mapping[str, Any]) -> str:
    """SHA-256 over what a mapping says, in whatever order, but for its seal."""
    plain = json.loads(json.dumps({key: value for key, value in content.items() if key != SEAL}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping with its seal, which comes last."""
    return {**{key: value for key, value in content.items() if key != SEAL}, SEAL: seal_of(content)}


def check_seal(content: Mapping[str, Any], path: Path) -> None:
    """Raises ValueError if what `path` says is not what it was sealed with.

    A file from before there were seals has none and is taken as it is.
    """
    if SEAL in content and content[SEAL] != seal_of(content):
        raise UserError(f"{path}: edited or damaged since it was written (its seal is another); put it back as it was")
