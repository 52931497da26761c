"""A small model hub over HTTP: the endpoints that a download of files uses."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True, slots=True)
class ModelHub:
    """Repositories by name, as directories; `endpoint` is the value of HF_ENDPOINT."""

    endpoint: str
    num_sent: Counter[str] = field(default_factory=Counter)
    """Whole files that were sent, by their names."""


@contextmanager
def model_hub(repositories: Mapping[str, Path]) -> Iterator[ModelHub]:
    """A hub on this machine; it has ended after the block."""

    class Handler(_Handler):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = ModelHub(f"http://127.0.0.1:{server.server_address[1]}")
    Handler.hub, Handler.repositories = hub, repositories
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: ModelHub
    repositories: Mapping[str, Path]

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def _answer(self, *, has_body: bool) -> None:
        parts = urlsplit(self.path).path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), parts[4:5])
            return
        name, rest = "/".join(parts[:2]), parts[4:]
        directory = self.repositories.get(name)
        if directory is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, has_body=has_body)
            return
        path = directory.joinpath(*rest)
        if not path.is_file():
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            self._send(404, b"", headers, has_body=has_body)
            return
        content = path.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        self.hub.num_sent[path.name] += has_body
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        self._send(200, content, headers, has_body=has_body)

    def _describe(self, name: str, what: list[str]) -> None:
        directory = self.repositories.get(name)
        if directory is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, has_body=True)
            return
        names = sorted(path.name for path in directory.iterdir())
        if what == ["tree"]:
            body: object = [
                {"type": "file", "path": each, "oid": COMMIT, "size": 0} for each in names
            ]
        else:
            body = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
        headers = {"Content-Type": "application/json"}
        self._send(200, json.dumps(body).encode(), headers, has_body=True)

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str], *, has_body: bool
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if has_body:
            self.wfile.write(body)
