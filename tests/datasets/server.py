"""A server on 127.0.0.1 that keeps files, and fails on request."""

from __future__ import annotations

import hashlib
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class FileServer:
    """What it keeps, how it fails, what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: list[int] = field(default_factory=list)
    """Bytes after which the next answers break off, one answer each."""
    statuses: list[int] = field(default_factory=list)
    """Errors to answer with before anything else."""
    ranges: bool = True
    etag: bool = True
    last_modified: str | None = None
    heeds_if_range: bool = True
    """Whether a version other than the one asked for is sent from its start."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and `Range` of every request."""
    conditions: list[str | None] = field(default_factory=list)
    """`If-Range` of every request for a file."""

    def add(self, name: str, content: bytes) -> dict[str, object]:
        """Keep a file; what a catalogue says of it."""
        self.files[f"/{name}"] = content
        return {
            "name": name,
            "url": f"{self.url}/{name}",
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }


@contextmanager
def serve() -> Iterator[FileServer]:
    """Run a server for the time of a `with` block."""
    state = FileServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = self.path.split("?")[0]
            state.asked.append((path, self.headers.get("Range")))
            if state.statuses:
                return self.refuse(state.statuses.pop(0))
            if path.startswith(("/datasets/", "/api/")):
                return self.hub(path, body=body)
            content = state.files.get(path)
            if content is None:
                return self.refuse(404)
            return self.send(content, body=body)

        def hub(self, path: str, *, body: bool) -> None:
            """As the Hugging Face hub answers: `lab/open` gives, `lab/gated` asks to accept terms."""
            if path.count("/") < 3:
                return self.refuse(404)
            repository, name = path.split("/")[3], "/" + "/".join(path.split("/")[6:])
            if repository in ("gated", "denied"):
                code = 401 if repository == "gated" and "Authorization" not in self.headers else 403
                return self.refuse(code, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
            content = state.files.get(name)
            if content is None:
                return self.refuse(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            return self.send(content, body=body, headers={"X-Repo-Commit": "0" * 40})

        def send(self, content: bytes, *, body: bool, headers: dict[str, str] | None = None) -> None:
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            start, asked = 0, self.headers.get("Range")
            state.conditions.append(self.headers.get("If-Range"))
            same = not state.heeds_if_range or self.headers.get("If-Range", tag) in (tag, state.last_modified)
            if asked and state.ranges and same:
                start = int(asked.removeprefix("bytes=").rstrip("-").split("-")[0])
                if start >= len(content):
                    return self.refuse(416)
            self.send_response(206 if start else 200)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if state.etag:
                self.send_header("ETag", tag)
            if state.last_modified:
                self.send_header("Last-Modified", state.last_modified)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if body:
                rest = content[start:]
                if state.cut_after:
                    rest = rest[: state.cut_after.pop(0)]
                    self.close_connection = True
                self.wfile.write(rest)
            return None

        def refuse(self, status: int, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Keep the test output quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
