"""A server on 127.0.0.1 that takes and gives the files of one data set repository, as the Hugging Face hub does."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "hf_secretofthistest"


@dataclass
class Repositories:
    """What the hub keeps, by name of the repository and commit, and what it was asked."""

    url: str = ""
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and token of every request."""
    fail: int | None = None
    """Status with which every commit is refused."""

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes] | None:
        """The files of a commit or of the main branch."""
        commit = self.heads.get(repository) if revision == "main" else revision
        return self.commits.get(repository, {}).get(commit or "")

    def commit(self, repository: str, operations: list[dict[str, Any]]) -> str:
        """Apply the operations of a commit to the main branch."""
        files = dict(self.files(repository) or {})
        for one in operations:
            if one["key"] == "deletedFile":
                files.pop(one["value"]["path"], None)
            elif one["key"] == "file":
                files[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
        sha = hashlib.sha1(
            repr(sorted((name, hashlib.sha1(c).digest()) for name, c in files.items())).encode()
        ).hexdigest()
        self.commits.setdefault(repository, {})[sha] = files
        self.heads[repository] = sha
        return sha


@contextmanager
def serve_hub() -> Iterator[Repositories]:
    """Run the hub for the time of a `with` block."""
    state = Repositories()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.split("?")[0]
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            state.asked.append((self.command, path, token))
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "repos"] or parts[:2] == ["api", "validate-yaml"]:
                return self.write_access(token) and self.make(parts, json.loads(body))
            if parts[:2] == ["api", "datasets"]:
                repository, what = "/".join(parts[2:4]), parts[4] if len(parts) > 4 else "revision"
                if what in ("preupload", "commit"):
                    return self.write_access(token) and self.take(repository, what, body)
                return self.tell(repository, what, parts[5] if len(parts) > 5 else "main", token)
            if parts[0] == "datasets":
                return self.give("/".join(parts[1:3]), parts[4], "/".join(parts[5:]), token)
            return self.send(404)

        def write_access(self, token: str | None) -> bool:
            if token != TOKEN:
                self.send(401 if token is None else 403, {"error": "forbidden"})
            return token == TOKEN

        def make(self, parts: list[str], asked: dict[str, Any]) -> None:
            if parts[1] == "validate-yaml":
                return self.send(200, {"errors": [], "warnings": []})
            repository = f"{asked.get('organization') or 'lab'}/{asked['name']}"
            if repository in state.private:
                return self.send(409, {"error": "exists", "url": f"{state.url}/datasets/{repository}"})
            state.private[repository] = bool(asked.get("private")) or asked.get("visibility") == "private"
            state.commit(repository, [])
            return self.send(200, {"url": f"{state.url}/datasets/{repository}"})

        def take(self, repository: str, what: str, body: bytes) -> None:
            if what == "preupload":
                files = [
                    {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for one in json.loads(body)["files"]
                ]
                return self.send(200, {"files": files})
            if state.fail:
                return self.send(state.fail, {"error": "no"})
            operations = [json.loads(line) for line in body.decode().splitlines()]
            sha = state.commit(repository, operations)
            return self.send(
                200, {"commitUrl": f"{state.url}/datasets/{repository}/commit/{sha}", "commitOid": sha, "success": True}
            )

        def tell(self, repository: str, what: str, revision: str, token: str | None) -> None:
            files = state.files(repository, revision)
            if repository not in state.private or (state.private[repository] and token != TOKEN):
                return self.send(
                    401, headers={"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
                )
            if files is None:
                return self.send(404, headers={"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
            if what == "tree":
                return self.send(
                    200,
                    [
                        {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                        for n, c in files.items()
                    ],
                )
            sha = state.heads[repository] if revision == "main" else revision
            siblings = [{"rfilename": name} for name in files]
            return self.send(
                200, {"id": repository, "sha": sha, "private": state.private[repository], "siblings": siblings}
            )

        def give(self, repository: str, revision: str, name: str, token: str | None) -> None:
            files = state.files(repository, revision)
            if state.private.get(repository) and token != TOKEN:
                return self.send(
                    401, headers={"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
                )
            if files is None or name not in files:
                return self.send(404, headers={"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
            return self.send(200, files[name], headers={"ETag": etag, "X-Repo-Commit": revision})

        def send(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
            body = content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header(
                "Content-Type", "application/octet-stream" if isinstance(content, bytes) else "application/json"
            )
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

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
