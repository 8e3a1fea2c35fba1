"""Answers of a web server that are not what was asked for: a picture never gets another's caption."""

import http.server
import random
import re
import threading
from pathlib import Path
from unittest.mock import patch

from chaoses import mutations as spoil
from chaoses.file_kinds import Kind
from chaoses.shard_files import data_of, mispaired, shard_bytes
from ldm.data import attempts
from ldm.data.fields import Caption

BAD_SHARE = 0.3  # of the answers


def wrong_range(body: bytes, first: int, whole: bytes, rng: random.Random) -> tuple[bytes, dict[str, str]]:
    """Other bytes, which the header states correctly."""
    start = rng.randrange(len(whole))
    piece = whole[start : start + len(body)]
    return piece, {"Content-Range": f"bytes {start}-{start + len(piece) - 1}/{len(whole)}"}


def short(body: bytes, first: int, whole: bytes, rng: random.Random) -> tuple[bytes, dict[str, str]]:
    """The body ends early."""
    return body[: rng.randrange(len(body) + 1)], {}


def long(body: bytes, first: int, whole: bytes, rng: random.Random) -> tuple[bytes, dict[str, str]]:
    """The body goes on."""
    return body + rng.randbytes(rng.choice((1, 512, 100_000))), {}


def other_object(body: bytes, first: int, whole: bytes, rng: random.Random) -> tuple[bytes, dict[str, str]]:
    """Another object has taken its place, with samples in another order."""
    turned = whole[10_240:] + whole[:10_240]
    return turned[first : first + len(body)], {"ETag": '"2"'}


def other_length(body: bytes, first: int, whole: bytes, rng: random.Random) -> tuple[bytes, dict[str, str]]:
    """The object is said to be of another size."""
    said = rng.choice((0, len(whole) * 2, 10**18, -1))
    return body, {"Content-Range": f"bytes {first}-{first + len(body) - 1}/{said}"}


def nonsense(body: bytes, first: int, whole: bytes, rng: random.Random) -> tuple[bytes, dict[str, str]]:
    """Headers that say nothing."""
    name = rng.choice(("Content-Range", "ETag", "Content-Type", "Content-Encoding"))
    return body, {name: rng.choice(("", "x", "bytes */*", "bytes 0-0/1", "gzip", "\u00ff" * 50))}


ANSWERS = (wrong_range, short, long, other_object, other_length, nonsense)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, content: bytes, how: spoil.Mutation, rng: random.Random):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.how, self.rng = content, how, rng

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that close the connection after a wrong answer."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *words: object) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        whole, rng = self.server.content, self.server.rng
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), int(asked[2])) if asked else (0, len(whole) - 1)
        body = whole[first : last + 1]
        headers = {"ETag": '"1"'}
        if asked:
            headers["Content-Range"] = f"bytes {first}-{first + len(body) - 1}/{len(whole)}"
            if rng.random() < BAD_SHARE:
                body, changed = self.server.how(body, first, whole, rng)
                headers |= changed
        self.send_response(206 if asked else 200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _read(how: spoil.Mutation, folder: Path, seed: bytes, unused: spoil.Mutation) -> list[str]:
    server = _Server(shard_bytes(), how, random.Random(seed))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        with patch.object(attempts, "PAUSES", [0.001] * len(attempts.PAUSES)):
            return mispaired(data_of(f"http://127.0.0.1:{server.server_port}/train-0.tar", caption=Caption()))
    finally:
        server.shutdown()
        server.server_close()


def as_it_is(content: bytes, rng: random.Random) -> bytes:
    """Here the answers are spoilt, as `content` draws it."""
    return content


KINDS = {
    f"answer: {how.__name__}": Kind(
        lambda rng: rng.randbytes(8), (as_it_is,), lambda *given, how=how: _read(how, *given)
    )
    for how in ANSWERS
}
MADE_ONCE = ()
