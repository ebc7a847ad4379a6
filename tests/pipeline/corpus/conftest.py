"""A bucket behind a proxy that can fail, for tests of corpora at URIs."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import serve_s3
from s3_proxy import Bucket, serve_proxy


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with serve_s3() as variables:
        yield variables


@pytest.fixture
def bucket(server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket of its own; the cache of mirrors is in tmp_path."""
    from botocore import session

    with serve_proxy(server["AWS_ENDPOINT_URL"]) as (proxy, address):
        for name, value in (server | {"AWS_ENDPOINT_URL": address, "AWS_MAX_ATTEMPTS": "1"}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("CONAN_CACHE", str(tmp_path / "cache"))
        name = f"bucket-{uuid.uuid4().hex}"
        session.get_session().create_client("s3").create_bucket(Bucket=name)
        proxy.writes.clear()
        yield Bucket(f"s3://{name}", proxy)
