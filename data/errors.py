"""What can be wrong with data: a whole shard (an error), or one sample (skipped, counted and named)."""

from math import ceil
from typing import Any

from ldm.data.addresses import without_secrets
from ldm.data.user_error import UserError

MAX_TOLD_CHARS = 4000


class ShardError(UserError):
    """A shard that is missing, cut, damaged or ambiguous; the message names the file and the reason.

    Names come from elsewhere: what would move a terminal's cursor is escaped, and passwords and signatures in addresses
    are hidden, whoever reported them.
    """

    def __init__(self, message: str = ""):
        super().__init__("\n".join(map(printable, without_secrets(message).split("\n"))))


class BadSample(UserError):
    """A sample that cannot be used. `kind` is a short constant phrase to count by; the message says what was seen."""

    def __init__(self, kind: str, detail: str = ""):
        super().__init__(detail or kind)
        self.kind = kind


class TooManyBadSamples(UserError):
    """More of the data is unusable than `data.max_bad_fraction` allows."""


class SkipLog:
    """The distinct samples that were skipped, and the limit on their number (a share of the data set, rounded up).

    Each process of a run keeps its own and sees only what its ranks' batches bring; nothing is exchanged.
    """

    def __init__(self, num_samples: int, max_bad_fraction: float):
        self.allowed = ceil(max_bad_fraction * num_samples)
        self.num_samples = num_samples
        self.max_bad_fraction = max_bad_fraction
        self._by_index: dict[int, dict[str, Any]] = {}

    @property
    def records(self) -> list[dict[str, Any]]:
        """One row per distinct bad sample: kind, shard, key, index, reason."""
        return list(self._by_index.values())

    def add(self, records: list[dict[str, Any]]) -> None:
        """Count new rows; raises TooManyBadSamples beyond the limit."""
        for record in records:
            self._by_index.setdefault(record["index"], record)
        if len(self._by_index) > self.allowed:
            raise too_many(self.records, self.num_samples, self.max_bad_fraction)


def too_many(records: list[dict[str, Any]], num_samples: int, max_bad_fraction: float) -> TooManyBadSamples:
    """The error with its list (the first 20)."""
    rows = [printable(f"  {row['kind']}: {row['shard']} {row['key']} ({row['reason']})") for row in records[:20]]
    more = [f"  ... and {len(records) - 20} more"] if len(records) > 20 else []
    head = (
        f"{len(records)} of {num_samples} samples are bad, more than data.max_bad_fraction={max_bad_fraction} allows; "
        "raise it to skip them, or repair them under their names and in their order, and the same command goes on:"
    )
    return TooManyBadSamples("\n".join([head, *rows, *more]))


def printable(text: str) -> str:
    """Text out of data, safe for a terminal or a log: what would move a cursor or break the line is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def told(error: BaseException) -> str:
    """An error's message as a user is shown it: line by line, safe for a terminal and limited in length."""
    text = "\n".join(printable(line) for line in str(error).splitlines()) or type(error).__name__
    return text if len(text) <= MAX_TOLD_CHARS else f"{text[:MAX_TOLD_CHARS]} ... ({len(text)} characters)"
