"""A web server on loopback that serves a folder by byte ranges, counts what is asked of it, and fails when told to."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class RangeServer(ThreadingHTTPServer):
    """`failures` answers are status 503 before any other; `delay` seconds pass before each; `ranges` may be off.

    `lie` changes the status, the content, the headers of the next `lies` answers to a range.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.failures = 0
        self.delay = 0.0
        self.ranges = True
        self.lies = 0
        self.lie: Callable[[int, bytes, dict[str, str]], tuple[int, bytes, dict[str, str]]] = lambda *answer: answer
        self.requests: list[tuple[str, str, int, int]] = []  # method, name, first byte, number of bytes
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def gets(self, name: str = "") -> list[tuple[int, int]]:
        """(first byte, number of bytes) of each GET of the file."""
        return [(start, size) for method, path, start, size in self.requests if method == "GET" and name in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def log_message(self, *words: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            time.sleep(server.delay)
            self._answer(with_content=True)
        finally:
            with server.lock:
                server.at_once -= 1

    def _answer(self, with_content: bool) -> None:
        server = self.server
        with server.lock:
            failing = server.failures > 0
            server.failures -= failing
        path = server.folder / self.path.lstrip("/").partition("?")[0]
        if failing or not path.is_file():
            return self._send(503 if failing else 404, b"", {}, with_content)
        content = path.read_bytes()
        whole, start = len(content), 0
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and server.ranges:
            start, stop = int(asked[1]), int(asked[2]) + 1
            content = content[start:stop]
        server.requests.append((self.command, self.path, start, len(content)))
        headers = {"ETag": f'"{path.stat().st_mtime_ns}"'}
        if asked and server.ranges:
            headers["Content-Range"] = f"bytes {start}-{start + len(content) - 1}/{whole}"
        answer = 206 if asked and server.ranges else 200, content, headers
        with server.lock:
            lying = server.lies > 0 and bool(asked)
            server.lies -= lying
        self._send(*(server.lie(*answer) if lying else answer), with_content)

    def _send(self, status: int, content: bytes, headers: dict[str, str], with_content: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_content:
            self.wfile.write(content)


@contextmanager
def serving(folder: Path) -> Iterator[RangeServer]:
    """The server, while the block lasts."""
    server = RangeServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
