"""A proxy in front of an S3 server, which can fail as networks and stores do."""

import http.client
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import NamedTuple
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import pytest
from object_store import serve_s3

Fault = Callable[[str, str], str | None]
"""Given method and path with query, say what fails: None, or `503`, `refuse` (it is not done, nor answered) or `forget`
(it is done, but not answered)."""


class S3Proxy:
    """Counts the writes that come through, and fails as `fault` says. `hidden` are keys that listings leave out.

    `watch` is called before each request with its User-Agent, which has the sender's AWS_SDK_UA_APP_ID, and with method
    and path.
    """

    def __init__(self, url: str) -> None:
        self.server = urlsplit(url).netloc
        self.writes: list[str] = []
        self.fault: Fault = lambda method, path: None
        self.watch: Callable[[str, str], None] = lambda sender, request: None
        self.hidden: set[str] = set()
        self.alone = Lock()  # moto looks whether a condition holds, then writes: two requests at once would both pass

    def answer(self, handler: "_Handler") -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.watch(handler.headers.get("User-Agent", ""), f"{handler.command} {unquote(handler.path)}")
        with self.alone:
            fault = self.fault(handler.command, unquote(handler.path))
            if fault == "503":
                handler.respond(503, {}, b"<Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>")
                return
            if fault == "refuse":
                handler.close_connection = True
                return
            connection = http.client.HTTPConnection(self.server)
            headers = {name: value for name, value in handler.headers.items() if name != "Expect"}
            connection.request(handler.command, handler.path, body, headers)
            answer = connection.getresponse()
            content, headers = answer.read(), dict(answer.getheaders())
            connection.close()
        if handler.command in ("PUT", "POST", "DELETE") and answer.status < 300:
            self.writes.append(f"{handler.command} {unquote(handler.path)}")
        if fault == "forget":
            handler.close_connection = True
            return
        if "list-type=2" in handler.path:
            for key in self.hidden:
                entry = rf"<Contents>(?:(?!</Contents>).)*<Key>{re.escape(key)}</Key>.*?</Contents>"
                content = re.sub(entry.encode(), b"", content, flags=re.DOTALL)
        handler.respond(answer.status, headers, content)


class Bucket(NamedTuple):
    """The URI of a bucket, and the proxy through which it is reached."""

    uri: str
    proxy: S3Proxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: S3Proxy

    def respond(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else content)

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self.proxy.answer(self)

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815


@contextmanager
def serve_proxy(url: str, port: int = 0) -> Iterator[tuple[S3Proxy, str]]:
    """Run a proxy in front of a server, by default at any free port; yield it and its address."""
    proxy = S3Proxy(url)
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"proxy": proxy}))
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield proxy, "http://{}:{}".format(*server.server_address)
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def serve_bucket(monkeypatch: pytest.MonkeyPatch, cache: Path, port: int) -> Iterator[Bucket]:
    """Run a server and its proxy, at a port, and make a bucket. This process uses it, with a cache of its own."""
    from botocore import session

    with serve_s3() as server, serve_proxy(server["AWS_ENDPOINT_URL"], port) as (proxy, address):
        for name, value in (server | {"AWS_ENDPOINT_URL": address, "CONAN_CACHE": str(cache)}).items():
            monkeypatch.setenv(name, value)
        name = f"bucket-{uuid4().hex}"
        session.get_session().create_client("s3").create_bucket(Bucket=name)
        yield Bucket(f"s3://{name}", proxy)
