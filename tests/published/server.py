"""A publisher on this machine: a web server whose answers a test chooses."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What the server has, and what it was asked for."""

    content: bytes = b""
    status: int = 200
    cut: int | None = None
    """Bytes after which the connection of a whole answer is closed."""
    tag: str = '"v1"'
    url: str = ""
    asked: list[str] = field(default_factory=list)
    """The Range header of each request, or an empty string."""


@contextlib.contextmanager
def publisher() -> Iterator[Site]:
    """Serves a `Site` at every path below its `url`."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            site.asked.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-") or 0)
            if start and self.headers.get("If-Range") != site.tag:
                start = 0
            if start >= len(site.content) > 0:
                self.send_error(416)
                return
            self.send_response(206 if start else site.status)
            self.send_header("Content-Length", str(len(site.content) - start))
            if site.tag:
                self.send_header("ETag", site.tag)
            self.end_headers()
            self.wfile.write(site.content[start : None if start else site.cut])

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
