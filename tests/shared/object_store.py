"""An S3 server for tests of what lies in an object store."""

from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def serve_s3() -> Iterator[dict[str, str]]:
    """Run an S3 server and yield the variables that lead to it; skips the test if moto or s3fs is not installed."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    # fsspec keeps its file systems, which remember the address of a server that a test of the same process stopped.
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    try:
        yield {"AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()), **CREDENTIALS}
    finally:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        server.stop()
