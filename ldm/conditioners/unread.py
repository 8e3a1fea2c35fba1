"""A text encoder left in its folder until a caption needs it: T5-XXL is 10 GB for each rank to read, and a run whose
tokens all come from a cache asks it for none.

What has to be known of it meanwhile is kept from an earlier reading, in the folder `encoders` of $LDM_CACHE, and is
believed while each file of the encoder's folder has the size and the time it had.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ldm.files import read_json, write_json
from ldm.networks.pretrained import cache_folder

KIND = "text encoder 1"
# A file may change twice within a tick of its clock: what was read this soon after a change is not believed later.
SETTLING_NS = 2 * 10**9


class Described(Protocol):
    """What is known of a text encoder, read or not; `identity` is what its answers depend on."""

    name: str
    width: int
    max_tokens: int

    @property
    def identity(self) -> dict[str, Any]: ...

    def read(self) -> Any:
        """The text encoder itself."""


@dataclass(frozen=True)
class Unread:
    """A text encoder as `recall` knows it."""

    name: str
    width: int
    max_tokens: int
    identity: dict[str, Any]
    read: Callable[[], Any]


def keep(folder: Path, asked: Mapping[str, Any], began_ns: int, facts: Mapping[str, Any]) -> None:
    """Note the `facts` of the encoder that was read from `folder` from `began_ns` on, with the arguments `asked`."""
    files = _files(folder)
    if all(changed + SETTLING_NS <= began_ns for _, changed in files.values()):
        with suppress(OSError):  # where it cannot be kept, it is read again
            write_json(_place(folder, asked), {"kind": KIND, "files": files, "facts": facts})


def recall(folder: Path, asked: Mapping[str, Any], read: Callable[[], Any]) -> Unread | None:
    """The encoder in `folder` if it is known and of its present state; `read` is called when it is needed itself."""
    try:
        kept = read_json(_place(folder, asked))
        present = kept["kind"] == KIND and kept["files"] == _files(folder)
        return Unread(**kept["facts"], read=read) if present else None
    except (OSError, ValueError, KeyError, TypeError):  # none was kept, or what is there is something else
        return None


def _files(folder: Path) -> dict[str, list[int]]:
    """Size and time of change in nanoseconds of each file."""
    found = {path.name: path.stat() for path in sorted(folder.glob("*")) if path.is_file()}
    return {name: [status.st_size, status.st_mtime_ns] for name, status in found.items()}


def _place(folder: Path, asked: Mapping[str, Any]) -> Path:
    text = json.dumps([str(folder.resolve()), asked], sort_keys=True)
    return cache_folder() / "encoders" / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.json"
