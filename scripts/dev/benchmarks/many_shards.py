"""A data set of any number of samples that takes no room: one small shard under many names."""

import io
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from ldm.data.fields import Label
from ldm.data.module import ShardData

SHARD_SAMPLES = 1000
MEMBERS = ("cls", "txt", "json")  # of a sample; a member is a header of 512 bytes and a block of 512


@contextmanager
def many_shards(num_samples: int) -> Iterator[str]:
    """Shards of 1,000 samples of three members each, links to one file; the pattern that names them all.

    As long as they are there, caches are beside them: nothing is known of them before.
    """
    with tempfile.TemporaryDirectory() as name, patch.dict(os.environ, {"LDM_CACHE": f"{name}/cache"}):
        yield _write(Path(name), num_samples)


def _write(folder: Path, num_samples: int) -> str:
    first = folder / "first.tar"
    with tarfile.open(first, "w") as tar:
        for number in range(SHARD_SAMPLES):
            for name in MEMBERS:
                member = tarfile.TarInfo(f"{number:08d}.{name}")
                member.size = 1
                tar.addfile(member, io.BytesIO(b"7"))
    os.utime(first, (1e9, 1e9))  # an index of a file that has just changed is not used again
    count = num_samples // SHARD_SAMPLES
    for number in range(count):
        os.link(first, folder / f"train-{number:06d}.tar")
    return f"{folder}/train-{{000000..{count - 1:06d}}}.tar"


def data_of(shards: str, batch_size: int = 64, shuffle_block: int | None = None) -> ShardData:
    """The data module over them: no images, one whole number a sample."""
    fields = {"label": Label(key=None, extension="cls")}
    return ShardData(shards, 64, batch_size, fields=fields, with_images=False, shuffle_block=shuffle_block)
