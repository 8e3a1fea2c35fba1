"""The process that a file names as holder, and whether it is alive: on this machine, or judged by its signs of life."""

import json
import os
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ldm.errors import UserError
from ldm.files import read_text
from ldm.ranks import launch

STALE_SECONDS = 60.0  # without a sign of life, by the disk's own clock
MAX_BYTES = 1 << 16


@dataclass(frozen=True)
class Holder:
    """Who holds a folder. `start` (ticks since `boot`) tells a process from a later one of the same number, `inode` the
    folder from a copy of it; process numbers are compared only within one `boot` and one `namespace` of them.
    """

    token: str
    host: str
    pid: int
    start: int | None
    boot: str | None
    namespace: int | None
    inode: int
    launch: list[str]
    doing: str

    @classmethod
    def me(cls, token: str, folder: Path, doing: str) -> Self:
        """This process, as the holder of `folder`."""
        start, _ = _process(os.getpid()) or (None, "")
        inode = folder.stat().st_ino
        return cls(token, _host(), os.getpid(), start, _boot(), _namespace(), inode, launch(), doing)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the untrusted file. Raises ValueError if it names no process, FileNotFoundError if there is none."""
        text = read_text(path, MAX_BYTES)
        try:
            holder = cls(**json.loads(text))
            words = (holder.token, holder.host, holder.doing)
            valid = all(isinstance(word, str) and re.fullmatch(r"[\w .-]+", word) for word in words)
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: names no process") from error
        if not (valid and isinstance(holder.pid, int) and 0 < holder.pid < 1 << 31):
            raise UserError(f"{path}: names no process")
        return holder

    @property
    def near(self) -> bool:
        """Whether the holder runs on this machine and can be checked from this process."""
        return (self.host, self.boot, self.namespace) == (_host(), _boot(), _namespace())

    def gone(self, folder: Path, silent_seconds: float) -> bool:
        """Whether the holder no longer holds `folder`; a file copied along with another folder holds nothing."""
        if not self.near:
            return silent_seconds > STALE_SECONDS
        if self.inode != folder.stat().st_ino:
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # a process of another user
            pass
        found = _process(self.pid)
        return found is not None and (found[1] in "ZX" or found[0] != self.start)

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


def _process(pid: int) -> tuple[int, str] | None:
    """(start in ticks since boot, letter of its state) of a process of this machine; None if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return int(fields[19]), fields[0]
    except (OSError, ValueError, IndexError):
        return None


def _host() -> str:
    return re.sub(r"[^\w.-]", "-", socket.gethostname()) or "unknown"


def _boot() -> str | None:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


def _namespace() -> int | None:
    with suppress(OSError):
        return os.stat("/proc/self/ns/pid").st_ino
    return None
