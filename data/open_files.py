"""Local shards kept open and checked for changes; the limit on open files, and the error when it is reached."""

import errno
import os
import resource
from collections import OrderedDict
from functools import cache
from io import FileIO
from pathlib import Path

from ldm.data.errors import ShardError
from ldm.data.objects import CHANGED, Facts, local_facts

WANTED = 4096
SHARE = 16  # of the limit that each holder of files may take


@cache
def file_limit() -> int:
    """The process's limit, the soft one raised as far as the hard one lets it, or as far as is of use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError):  # some systems have a limit of their own
            most = soft
    return most


def room(wanted: int) -> int:
    """How many of `wanted` files a holder may keep open."""
    return max(1, min(wanted, file_limit() // SHARE))


class OpenFile:
    """A file open for reading by position. Raises ShardError if it is not as `facts` say."""

    def __init__(self, path: Path, facts: Facts):
        self.path = path
        self._file = opened(path)
        status = os.fstat(self._file.fileno())
        self._state = status.st_size, status.st_mtime_ns
        if local_facts(status) != facts:
            raise ShardError(f"{path}{CHANGED}")

    @property
    def descriptor(self) -> int:
        """What it is read by. Raises ValueError once it is closed, when the number may be another file's."""
        return self._file.fileno()

    def check(self) -> None:
        """Raises ShardError if the file was modified since. A new file under the same name is not looked at."""
        if self._file.closed:
            return  # `close` has checked it
        now = os.fstat(self.descriptor)
        if (now.st_size, now.st_mtime_ns) != self._state:
            raise ShardError(f"{self.path}{CHANGED}")

    def close(self) -> None:
        """Check the file once more, then close it."""
        self.check()
        self._file.close()


class OpenFiles:
    """The files that were used last, at most `most` of them."""

    def __init__(self, most: int):
        self.most = most
        self._files: OrderedDict[Path, OpenFile] = OrderedDict()

    def open(self, path: Path, facts: Facts) -> OpenFile:
        """The file, opened if need be."""
        found = self._files.pop(path, None)
        if found is None:
            if len(self._files) >= room(self.most):
                self._files.popitem(last=False)[1].close()
            found = OpenFile(path, facts)
        self._files[path] = found
        return found


def opened(path: Path) -> FileIO:
    """A file, open for reading. Raises ShardError where there are too many."""
    try:
        return FileIO(path)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise ShardError(
            f"{path}: too many open files (limit {file_limit()}): raise it with ulimit -n 4096, or lower "
            "data.num_workers"
        ) from error
