"""One writer to a folder: a file in it says which process holds it, and is touched every ten seconds as a sign of life.

It is not an operating system's lock: those do not work on every network disk. A file whose process has died is taken
over: from this machine as soon as the process is gone, from another one after a minute.
"""

import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from ldm.errors import UserError
from ldm.files import refusals_named
from ldm.holder import STALE_SECONDS, Holder
from ldm.ranks import launch

NAME = "held.json"
TEMPORARY = ".holding-"  # not what `files.sweep` removes: another process may be about to take the folder
BEAT_SECONDS = 10.0


class FolderHeld(UserError):
    """Another process writes into the folder."""


class FolderLost(UserError):
    """Another process has taken the folder over; nothing more may be written."""


class Hold:
    """A folder held by this process from `take` to `release`."""

    def __init__(self, folder: Path, doing: str):
        self.folder = folder
        self.doing = doing
        self._path = folder.absolute() / NAME
        self._pid = os.getpid()
        self._token = secrets.token_hex(8)
        self._ended = threading.Event()
        self._beaten = 0.0
        self._lost: str | None = None

    def take(self) -> None:
        """Raises FolderHeld naming the process that holds the folder."""
        with refusals_named(self._path):
            _take(self._path, Holder.me(self._token, self.folder, self.doing), self.folder)
        self._beaten = _now()
        _sweep(self._path)
        threading.Thread(target=self._beat, name=f"holds {self.folder}", daemon=True).start()

    def check(self) -> None:
        """Raises FolderLost if another process has taken the folder over: it had assumed that this one was dead."""
        if self._lost is None and _now() - self._beaten > 2 * BEAT_SECONDS:  # it was suspended, or the disk hung
            self._look()
        if self._lost is not None:
            raise FolderLost(f"{self.folder}: {self._lost}; this process stops and writes nothing more")

    def release(self) -> None:
        """Let others have the folder. A forked child has nothing to release."""
        if os.getpid() != self._pid:
            return
        self._ended.set()
        with suppress(OSError, ValueError):
            if Holder.read(self._path).token == self._token:
                self._path.unlink()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS) and self._lost is None:
            self._look()

    def _look(self) -> None:
        """Give a sign of life, or notice that the folder was lost."""
        try:
            found = Holder.read(self._path)
            if found.token == self._token:
                os.utime(self._path)
                self._beaten = _now()
            elif not self._ended.is_set():
                self._lost = f"another process ({found}) holds it by now"
        except FileNotFoundError:
            if not self._ended.is_set():
                self._lost = f"{NAME} is gone from it: deleted, or the folder was moved"
        except (OSError, ValueError):  # the disk does not respond: the next beat tries again
            pass


@contextmanager
def held(folder: Path, doing: str) -> Iterator[Hold]:
    """Hold `folder`, made if need be, while the body runs; others are told that this process is `doing` it.

    Raises FolderHeld in one line if another process holds it. A folder made for this that stays empty is removed.
    """
    made = not folder.exists()
    if made and folder.is_symlink():
        raise UserError(f"{folder}: a link that leads nowhere, to {folder.readlink()} (a disk that is not mounted?)")
    if not made and not folder.is_dir():
        raise UserError(f"{folder}: is a file, where a folder is written; name another")
    with refusals_named(folder / NAME):
        folder.mkdir(parents=True, exist_ok=True)
    hold, owner = Hold(folder, doing), os.getpid()
    try:
        hold.take()
        yield hold
    finally:
        hold.release()
        if made and os.getpid() == owner:
            with suppress(OSError):
                folder.rmdir()


def check_launch(folder: Path) -> None:
    """For ranks other than zero, which holds the folder or will. Raises FolderHeld if it is another launch's."""
    try:
        holder = Holder.read(folder / NAME)
        gone = holder.gone(folder, time.time() - (folder / NAME).stat().st_mtime)
    except (OSError, ValueError):
        return
    starter = holder.near and holder.pid == os.getppid()  # Lightning starts the others from rank zero
    if not gone and not starter and holder.launch != launch():
        raise FolderHeld(f"another process ({holder}) is {holder.doing} {folder}")


def _take(path: Path, me: Holder, folder: Path, depth: int = 0) -> None:
    """Put `me` at `path`, which does not exist or is stale.

    Of several who find the same stale file one becomes its successor, at a path that belongs to that file; only it may
    take its place, and only while the file is still there. A successor that was killed there is succeeded in turn.
    """
    while (now := _put(path, me)) is not None:
        try:
            found = _holder(path)
            status = path.stat()
        except FileNotFoundError as error:
            if path.is_symlink():  # which is there, and whose file never will be
                raise UserError(f"{path}: a link that leads nowhere; delete it") from error
            continue
        silent = now - status.st_mtime
        if not (found.gone(folder, silent) if found else silent > STALE_SECONDS):
            raise FolderHeld(_refusal(found, silent, folder, path))
        successor = path.with_name(f"{TEMPORARY}{depth}-after-{found.token if found else status.st_ino}")
        _take(successor, me, folder, depth + 1)
        try:
            if _holder(path) == found:
                _write(path, me).replace(path)
                print(f"{folder}: taken over from {found or 'a process'}, which is gone", flush=True)
                return
        except FileNotFoundError:
            continue
        finally:
            successor.unlink(missing_ok=True)


def _put(path: Path, me: Holder) -> float | None:
    """Write `me` to `path` and return None; if it exists, return the present time of the disk's clock, seconds."""
    temporary = _write(path, me)
    try:
        os.link(temporary, path)
    except FileExistsError:
        status = temporary.stat()
        return None if status.st_nlink == 2 else status.st_mtime  # the link was made, but the reply was lost
    except OSError:  # a disk without hard links
        try:
            with path.open("x") as file:
                file.write(temporary.read_text())
        except FileExistsError:
            return temporary.stat().st_mtime
    finally:
        temporary.unlink(missing_ok=True)
    return None


def _write(path: Path, me: Holder) -> Path:
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}")
    temporary.write_text(json.dumps(asdict(me), indent=2) + "\n")
    return temporary


def _holder(path: Path) -> Holder | None:
    """None for a file that names no process: cut off while it was written, or somebody else's."""
    try:
        return Holder.read(path)
    except ValueError:
        return None


def _sweep(path: Path) -> None:
    """Remove temporary files of processes that were killed while taking the folder; safe while it is held."""
    now = path.stat().st_mtime
    for leftover in path.parent.glob(f"{TEMPORARY}*"):
        with suppress(OSError):
            if now - leftover.stat().st_mtime > STALE_SECONDS:
                leftover.unlink()


def _refusal(holder: Holder | None, silent_seconds: float, folder: Path, path: Path) -> str:
    if holder is None:
        return f"{path}: names no process; delete it if none writes into {folder}"
    line = f"another process ({holder}) is {holder.doing} {folder}"
    if holder.near:
        return line
    return f"{line}; its last sign of life is {silent_seconds:.0f} s old, and it counts as gone at {STALE_SECONDS:.0f}"


def _now() -> float:
    """Seconds that also pass while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
