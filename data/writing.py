"""Writing shards: byte-for-byte reproducible tars by webdataset's writer, and the manifest that lists them.

Does not choose what goes into a shard, and never leaves a half-written file under its final name.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ldm.data.user_error import UserError

MANIFEST = "manifest.json"


def write_shard(
    path: Path, samples: Iterable[Mapping[str, Any]], expected: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write samples (`__key__` and bytes per extension) to one tar; returns its row of the manifest.

    Owner, mode and time are fixed, so the same samples give the same bytes. Where a row is `expected`, other samples
    are a ValueError, and a file that has these bytes already is left alone.
    """
    from webdataset import TarWriter  # and with it torch, which takes seconds

    partial = path.with_name(path.name + ".partial")
    count = 0
    with open(partial, "wb") as file:
        # an open file, not a name: webdataset would run a name that begins with "pipe:"
        with TarWriter(file, encoder=False, user="ldm", group="ldm", mtime=0) as tar:
            for sample in samples:
                tar.write(sample)
                count += 1
        file.flush()
        os.fsync(file.fileno())
    row = {"name": path.name, "samples": count, "bytes": partial.stat().st_size, "sha256": sha256_of(partial)}
    if expected is not None and (count, row["sha256"] if count else None) != _found(expected):
        partial.unlink()
        raise UserError(
            f"{path} is finished, and its images, or what is known about them, have changed since; choose another "
            "folder, or delete it"
        )
    if expected is not None and path.exists() and sha256_of(path) == row["sha256"]:
        partial.unlink()
    else:
        os.replace(partial, path)
    return row


def _found(row: Mapping[str, Any]) -> tuple[int, str | None]:
    return row["samples"], row["sha256"] if row["samples"] else None


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write `manifest.json` beside its shards; names that are no text keep their bytes as escapes."""
    partial = folder / (MANIFEST + ".partial")
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    partial.write_bytes(text.encode("utf-8", "backslashreplace"))
    os.replace(partial, folder / MANIFEST)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
