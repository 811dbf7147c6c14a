"""A hub of one model folder on loopback: what the hub's client asks for, answered from the disk."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "a" * 40
DATE = "2026-01-01T00:00:00.000Z"


class Answer(BaseHTTPRequestHandler):
    """Model info, commits and files of ``server.folder`` under the name ``server.name``."""

    def do_HEAD(self) -> None:
        self._send(self._content(), body=False)

    def do_GET(self) -> None:
        self._send(self._content(), body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _content(self) -> bytes | None:
        folder, name = self.server.folder, self.server.name
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        if path in (f"/api/models/{name}", f"/api/models/{name}/revision/main"):
            info = {"id": name, "sha": COMMIT, "private": False, "lastModified": DATE,
                    "siblings": [{"rfilename": file} for file in files]}  # fmt: skip
            return json.dumps(info).encode()
        if path == f"/api/models/{name}/tree/{COMMIT}":
            return json.dumps([_entry(folder, file) for file in files]).encode()
        if path == f"/api/models/{name}/commits/main":
            commit = {"id": COMMIT, "title": "", "message": "", "authors": [], "date": DATE}
            return json.dumps([commit]).encode()
        for revision in ("main", COMMIT):
            file = path.removeprefix(f"/{name}/resolve/{revision}/")
            if file in files:
                return (folder / file).read_bytes()
        return None

    def _send(self, content: bytes | None, body: bool) -> None:
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if body and content:
            self.wfile.write(content)


def _entry(folder: Path, file: str) -> dict[str, object]:
    content = (folder / file).read_bytes()
    return {"type": "file", "path": file, "size": len(content),
            "oid": hashlib.sha1(content).hexdigest()}  # fmt: skip


@contextmanager
def serve(folder: Path, name: str, asked: list[str] | None = None) -> Iterator[str]:
    """Address of a hub that has this folder as the model ``name``; ``asked`` gets the paths."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.folder, server.name, server.asked = folder, name, [] if asked is None else asked
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
