"""A small hub on this machine: serves the files of a folder, and keeps what is pushed to it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves `root/OWNER/NAME/…` as repositories, those in `gated` to nobody; keeps what it is sent."""

    def __init__(self, root: Path | None = None, gated: tuple[str, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.gated, self.private = root, gated, True
        self.created, self.files, self.served = list[dict[str, Any]](), dict[str, bytes](), list[str]()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def environment(self, home: Path) -> dict[str, str]:
        """The environment of a process that knows no other hub."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        return env | {
            "HF_ENDPOINT": self.address,
            "HF_TOKEN": "hf_of_a_test",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(home),
        }


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield hub
    hub.shutdown()
    hub.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        parts = path.removeprefix("api/").split("/")
        if self.server.root is None and path.startswith("api/models/"):
            return self.answer({"id": "me/model", "private": self.server.private})
        if self.server.root is None or path in ("", "api/whoami-v2"):
            return self.answer({})
        if parts[0] in ("models", "datasets"):
            parts = parts[1:]
        name, rest = "/".join(parts[:2]), parts[2:]
        at = rest[1] if len(rest) > 1 and rest[0] in ("resolve", "tree", "revision") else COMMIT
        other = self.server.root / f"{name}@{at}"  # a revision that differs from the newest
        folder = other if other.is_dir() else self.server.root / name
        if name in self.server.gated:
            return self.answer({"error": "gated"}, 403, {"X-Error-Code": "GatedRepo"})
        if not folder.is_dir():
            return self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if rest and rest[0] == "resolve":
            return self.send(folder / "/".join(rest[2:]))
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        listed = [(p.relative_to(folder).as_posix(), p.stat().st_size) for p in files]
        if rest and rest[0] == "tree":
            return self.answer([{"type": "file", "path": n, "size": s, "oid": COMMIT} for n, s in listed])
        siblings = [{"rfilename": n, "size": s, "blobId": COMMIT} for n, s in listed]
        commit = at if other.is_dir() else COMMIT
        self.answer({"id": name, "sha": commit, "private": False, "gated": False, "siblings": siblings})

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/repos/create"):
            self.server.created.append(json.loads(body))
            self.answer({"url": f"{self.server.address}/me/model", "name": "me/model"})
        elif "/preupload/" in self.path:
            names = [f["path"] for f in json.loads(body)["files"]]
            self.answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {"commitUrl": f"{self.server.address}/me/model/commit/abc", "commitOid": "abc", "success": True}
            )
        else:
            self.answer({})

    def send(self, file: Path) -> None:
        """A file as the hub sends it."""
        if not file.is_file():
            return self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        if self.command == "GET":
            self.server.served.append(file.name)
        body = file.read_bytes()
        self.write(body, 200, {"ETag": f'"{hashlib.sha256(body).hexdigest()[:40]}"', "X-Repo-Commit": COMMIT})

    def answer(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.write(json.dumps(value).encode(), status, {"Content-Type": "application/json"} | (headers or {}))

    def write(self, body: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
