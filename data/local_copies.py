"""Whole copies of remote shards on a local disk, made beside the run that reads them, within a bound.

A process of its own (data.copying) copies one shard after the other; until a copy is there its shard is read where it
lies, so that a run never waits for it and reads the same bytes either way.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.data.index_cache import Entry
from ldm.data.objects import Facts, Url, local_facts
from ldm.data.progress import say
from ldm.data.user_error import UserError

GB = 10**9


class LocalCopies:
    """The copies in `folder`, at most `max_gb` 10^9 bytes of them. Raises UserError where there can be none."""

    def __init__(self, folder: str | Path, max_gb: float):
        if not max_gb > 0:
            raise UserError(f"data.cache_dir_gb={max_gb}: must be above 0; data.cache_dir=null keeps no copies")
        self.folder = Path(folder).expanduser().absolute()
        self.max_bytes = int(max_gb * GB)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"data.cache_dir={folder}: cannot be made ({error.strerror})") from error
        if not os.access(self.folder, os.W_OK):
            raise UserError(f"data.cache_dir={folder}: cannot be written to")

    def find(self, url: Url, facts: Facts) -> tuple[Path, Facts] | None:
        """The copy of this version of a shard and its own facts, None if there is none."""
        path = self.path(url, facts)
        try:
            status = path.stat()
        except OSError:
            return None
        return (path, local_facts(status)) if status.st_size == facts.num_bytes else None

    def path(self, url: Url, facts: Facts) -> Path:
        """Where the copy of this version of a shard lies."""
        text = f"{url.place}\n{facts.num_bytes}\n{facts.stamp}"
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.tar"

    def begin(self, shards: Sequence[Entry], hashes: Sequence[str | None]) -> subprocess.Popen | None:
        """A process that copies the remote ones of `shards` while this one lives, None where nothing is left to copy.

        `hashes` are the SHA-256 of the shards' bytes, as far as they are known: a copy has to have its own, or else the
        headers that were read from where the shard lies.
        """
        pairs = zip(shards, hashes, strict=True)
        remote = [(shard.path, shard, known) for shard, known in pairs if isinstance(shard.path, Url)]
        jobs = [job_for(shard, known) for _, shard, known in remote if known or shard.facts.stamp]
        missing = sum(self.find(url, shard.facts) is None for url, shard, _ in remote)
        if len(jobs) < len(remote):
            say(f"data.cache_dir: {len(remote) - len(jobs)} shards have neither version nor hash and are not copied")
        if not jobs or not missing:
            return None
        say(f"data.cache_dir: {missing} of {len(remote)} remote shards are copied to {self.folder} meanwhile")
        root = str(Path(sys.modules[__package__.partition(".")[0]].__file__).resolve().parents[1])  # type: ignore[arg-type]
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.copying"], stdin=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(json.dumps({"folder": str(self.folder), "max_bytes": self.max_bytes, "jobs": jobs}) + "\n")
        process.stdin.flush()  # and stays open: it closes where this process ends, however it ends
        return process


def job_for(shard: Entry, known: str | None) -> dict[str, Any]:
    """The job description of a shard for the copying process."""
    assert isinstance(shard.path, Url)
    return {"url": shard.path.text, "facts": list(shard.facts), "sha256": known, "headers": shard.digest}
