"""Retries of remote reads: transient errors are tried again, and a final failure is one line that names the object."""

import time
from collections.abc import Callable
from functools import cache
from typing import TypeVar

from ldm.data.errors import ShardError
from ldm.data.objects import Url
from ldm.data.progress import say

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further attempt
DENIED = (400, 401, 403, 404, 410)

Found = TypeVar("Found")


class MissingShard(ShardError):
    """An object that is not there."""


class WrongAnswer(Exception):
    """An answer that is not what was asked for: another range, another version, too short, too long."""


class Trouble(Exception):
    """An error that a client raised for an object, or what was wrong with its answer."""

    def __init__(self, url: Url, error: BaseException):
        self.url = url
        self.error = error

    @property
    def is_missing(self) -> bool:
        """Whether there is no such object; fsspec's http raises FileNotFoundError for every failure."""
        cause = self.error.__cause__
        told = cause is None or not self.url.text.startswith("http") or getattr(cause, "status", 0) in DENIED
        return isinstance(self.error, FileNotFoundError) and told

    @property
    def is_final(self) -> bool:
        """Whether the error is permanent, so that a retry is useless."""
        return self.is_missing or isinstance(self.error, PermissionError | NotImplementedError | ShardError)

    def report(self) -> ShardError:
        """The one line for the user."""
        if isinstance(self.error, ShardError):
            return self.error
        if isinstance(self.error, WrongAnswer):
            return ShardError(f"{self.url}{self.error}")
        if self.is_missing:
            return MissingShard(f"{self.url}: there is no such object")
        reason = f"{type(self.error).__name__}: {self.error}".splitlines()[0].replace(self.url.text, str(self.url))
        tries = "" if self.is_final else f" in {len(PAUSES) + 1} attempts"
        return ShardError(f"{self.url}: cannot be read{tries} ({reason})")


def asked(url: Url, action: Callable[[], Found]) -> Found:
    """What `action` returns about an object; transient errors are retried."""

    def once() -> Found:
        try:
            return action()
        except Exception as error:  # file systems raise whatever their clients do
            raise Trouble(url, error) from error

    return repeat(once)


def repeat(action: Callable[[], Found]) -> Found:
    """What `action` returns; it is retried when it raises Trouble."""
    pauses = iter(PAUSES)
    while True:
        try:
            return action()
        except Trouble as trouble:
            pause = next(pauses, None)
            if pause is None or trouble.is_final:
                raise trouble.report() from trouble.error
            _tell(trouble)
            time.sleep(pause)


@cache
def _told() -> set[tuple[str, str]]:
    return set()


def _tell(trouble: Trouble) -> None:
    """Print, once per process and folder, what a server answers instead of the bytes."""
    status = getattr(trouble.error, "status", None)
    answer = f"status {status}" if status else type(trouble.error).__name__
    place = str(trouble.url.parent)
    if (place, answer) not in _told():
        _told().add((place, answer))
        say(f"{place}: {answer}; asking again with growing pauses, and not saying so again")
