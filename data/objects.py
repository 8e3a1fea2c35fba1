"""Names of remote objects, spans of their bytes, and the facts that tell one version from another."""

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ldm.data.addresses import without_secrets

SCHEMES = ("s3", "gs", "gcs", "http", "https", "memory")
# Query parameters that only grant access: signatures of S3 (v2 and v4), Google, Azure, CloudFront, others.
LEAVE = re.compile(
    r"(x-amz-|x-goog-|x-oss-).*|(aws|oss)?accesskeyid|googleaccessid|signature|expires|policy|key-pair-id|security-token|"
    r"(access_?)?token|api_?key|password|auth|authorization|hdnts|hdnea|verify|sig",
    re.IGNORECASE,
)
AZURE = frozenset(
    {
        "sv",
        "ss",
        "srt",
        "sp",
        "se",
        "st",
        "spr",
        "sr",
        "si",
        "sip",
        "sdd",
        "skoid",
        "sktid",
        "skt",
        "ske",
        "sks",
        "skv",
        "ses",
        "rscc",
        "rscd",
        "rsce",
        "rscl",
        "rsct",
    }
)
CHANGED = " changed while it was in use; start again"  # behind the name
MAX_QUERY_CHARS = 1 << 14


@dataclass(frozen=True, repr=False)
class Url:
    """A remote object or folder, with the names that a Path has.

    `text` is the URL that is requested. `place` is that without signature or password, by which the object is
    recognised under a new signature. It is shown without its query.
    """

    text: str

    def __str__(self) -> str:
        return without_secrets(self.place)

    __repr__ = __str__

    @property
    def place(self) -> str:
        """The URL without what only grants access to it."""
        return unsigned(self.text)

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.text}/{name}")

    @property
    def name(self) -> str:
        """The last part, without the query that a signed URL has."""
        return posixpath.basename(self.text.partition("?")[0])

    @property
    def parent(self) -> "Url":
        """The folder it lies in."""
        return Url(posixpath.dirname(self.text.partition("?")[0]))


Location = Path | Url


class Facts(NamedTuple):
    """What tells a file from a changed one: its size, and its modification time or entity tag."""

    num_bytes: int
    stamp: str


class Span(NamedTuple):
    """Bytes start .. stop of a remote object which is still as `facts` say."""

    url: Url
    start: int
    stop: int
    facts: Facts


def local_facts(status: Any) -> Facts:
    """The facts in what `os.stat` or `os.fstat` returned."""
    return Facts(status.st_size, str(status.st_mtime_ns))


def unsigned(text: str) -> str:
    """A URL without what only grants access to it: a user name, a signature, a token."""
    scheme, mark, place = text.partition("://")
    host, slash, path = place.partition("/")
    path, question, query = path.partition("?")
    parts = [part for part in query[:MAX_QUERY_CHARS].split("&") if part]
    names = [part.partition("=")[0].lower() for part in parts]
    left_out = AZURE if "sig" in names else frozenset()
    kept = [p for p, n in zip(parts, names, strict=True) if not (LEAVE.fullmatch(n) or n in left_out)]
    host = host.rpartition("@")[2] if scheme in ("http", "https") else host
    return f"{scheme}{mark}{host}{slash}{path}" + (question + "&".join(kept) if kept else "")
