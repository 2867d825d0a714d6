"""A hub of models on the loopback: as much of its interface as pushing and loading need."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeHub(ThreadingHTTPServer):
    """Repositories in memory: name to file to bytes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that runs while the block does."""
    with FakeHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def commit_of(files: dict[str, bytes]) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    for name in sorted(files):
        digest.update(name.encode() + files[name])
    return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self, body: bytes, *, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value, *, status: int = 200, **headers: str) -> None:
        self._answer(
            json.dumps(value).encode(), status=status, Content_Type="application/json", **headers
        )

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0]
        if path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.server.repositories.setdefault(name, {})
            self.server.private[name] = asked.get("visibility") == "private"
            self._json({"url": f"{self.server.address}/{name}", "name": name, "id": name})
        elif "/preupload/" in path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif "/commit/" in path:
            name = path.removeprefix("/api/models/").split("/commit/")[0]
            files = self.server.repositories[name]
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            oid = commit_of(files)
            address = f"{self.server.address}/{name}/commit/{oid}"
            self._json({"success": True, "commitOid": oid, "commitUrl": address})
        else:
            self._json({"error": path}, status=404)

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith("/api/models/"):
            name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
            files = self.server.repositories.get(name)
            if files is None:
                self._missing("RepoNotFound", status=401)
            elif "/tree/" in path:
                self._json(
                    [
                        {"type": "file", "path": file, "size": len(content), "oid": _oid(content)}
                        for file, content in files.items()
                    ]
                )
            else:
                siblings = [{"rfilename": file} for file in files]
                self._json({"id": name, "sha": commit_of(files), "siblings": siblings})
            return
        name, _, rest = path.lstrip("/").partition("/resolve/")
        files = self.server.repositories.get(name)
        file = rest.partition("/")[2]
        if files is None:
            self._missing("RepoNotFound", status=401)
        elif file not in files:
            self._missing("EntryNotFound", X_Repo_Commit=commit_of(files))
        else:
            self._answer(files[file], ETag=f'"{_oid(files[file])}"', X_Repo_Commit=commit_of(files))

    do_HEAD = do_GET

    def _missing(self, code: str, *, status: int = 404, **headers: str) -> None:
        self._json({"error": code}, status=status, X_Error_Code=code, **headers)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
