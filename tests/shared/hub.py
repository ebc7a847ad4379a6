"""A stand-in of the Hugging Face hub's HTTP interface: repositories that can be created, listed, read and committed to.

Its answers have what huggingface_hub asks for, after https://huggingface.co/docs/hub/api and the client's own source.
Every file is a regular one, so that nothing goes through LFS or Xet.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """A repository: its files, whether it is private, the messages of its commits."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """The repositories by kind and name ("datasets/me/zh"), and the token that may write."""

    token: str = "right"
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)


@contextmanager
def serve_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve a hub, and point huggingface_hub at it."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self._path()
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            repository = self._find(found[1], found[2])
            if repository:
                files = [{"rfilename": name} for name in sorted(repository.files)]
                state = {"id": found[2], "private": repository.private, "siblings": files, "sha": SHA}
                self._answer(state | {"tags": [], "downloads": 0, "likes": 0})
        elif found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/[^/]+/?(.*)", path):
            repository = self._find(found[1], found[2])
            if repository:
                recursive = "recursive=true" in self.path.lower()
                self._answer(_list(repository, unquote(found[3]), recursive))
        elif found := re.fullmatch(r"(?:/(datasets))?/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            repository = self._find(found[1] or "models", found[2])
            if repository:
                self._send_file(repository, unquote(found[3]))
        else:
            self._refuse(404, f"no such page: {path}")

    def do_POST(self) -> None:
        path = self._path()
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/paths-info/[^/]+", path):
            repository = self._find(found[1], found[2])
            if repository:
                asked = json.loads(data)["paths"]
                every = _list(repository, "", recursive=True)
                self._answer([entry for entry in every if entry["path"] in asked])
        elif self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._refuse(401, "Invalid user token")
        elif path == "/api/repos/create":
            asked = json.loads(data)
            kind = f"{asked.get('type') or 'model'}s"
            name = asked["name"] if not asked.get("organization") else f"{asked['organization']}/{asked['name']}"
            if f"{kind}/{name}" in self.hub.repositories:
                self._answer({"error": "You already created this repo", "url": self._url(kind, name)}, 409)
                return
            private = asked.get("private") or asked.get("visibility") == "private"
            self.hub.repositories[f"{kind}/{name}"] = Repository(bool(private))
            self._answer({"url": self._url(kind, name), "id": name, "name": name})
        elif found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/preupload/main", path):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(data)["files"]
            ]
            self._answer({"files": files})
        elif found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/commit/main", path):
            repository = self._find(found[1], found[2])
            if repository:
                self._commit(repository, data)
                url = f"{self._url(found[1], found[2])}/commit/{SHA}"
                self._answer({"success": True, "commitUrl": url, "commitOid": SHA, "hookOutput": ""})
        else:
            self._refuse(404, f"no such page: {path}")

    def _path(self) -> str:
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        return path

    def _url(self, kind: str, name: str) -> str:
        return f"http://{self.headers['Host']}/{'datasets/' if kind == 'datasets' else ''}{name}"

    def _find(self, kind: str, name: str) -> Repository | None:
        found = self.hub.repositories.get(f"{kind}/{name}")
        if found is None:
            self._refuse(404, "Repository not found", "RepoNotFound")
        return found

    def _commit(self, repository: Repository, data: bytes) -> None:
        for line in map(json.loads, data.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repository.commits.append(value["summary"])
            elif line["key"] == "file":
                assert value["encoding"] == "base64"
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del repository.files[value["path"]]
            else:
                raise AssertionError(line["key"])

    def _send_file(self, repository: Repository, name: str) -> None:
        if name not in repository.files:
            self._refuse(404, "Entry not found", "EntryNotFound")
            return
        data, status = repository.files[name], 200
        size = len(data)
        headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(found[1]), min(int(found[2] or size - 1), size - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{size}"
            data, status = data[start : end + 1], 206
        self._send(data, status, headers)

    def _answer(self, content: Any, status: int = 200) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def _refuse(self, status: int, message: str, code: str = "") -> None:
        headers = {"Content-Type": "application/json", "X-Error-Message": message}
        self._send(json.dumps({"error": message}).encode(), status, headers | ({"X-Error-Code": code} if code else {}))

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _list(repository: Repository, folder: str, recursive: bool) -> list[dict[str, Any]]:
    """The files in a folder and, unless all below it are asked for, its folders."""
    prefix = f"{folder}/" if folder else ""
    below = {name: data for name, data in repository.files.items() if name.startswith(prefix)}
    folders = {
        prefix + "/".join(parts[:depth])
        for parts in (name.removeprefix(prefix).split("/") for name in below)
        for depth in range(1, len(parts))
    }
    files = [{"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in below.items()]
    listed = files + [{"type": "directory", "path": name, "size": 0, "oid": _oid(name.encode())} for name in folders]
    return [entry for entry in listed if recursive or "/" not in str(entry["path"]).removeprefix(prefix)]


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
