"""A call on another machine writes once, whichever of its attempts the driver hears of."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conan_embedding.pipeline.corpus import uris
from conan_embedding.pipeline.corpus.folder import begin, finish, rejects
from conan_embedding.pipeline.corpus.lease import LOCK, LeaseLostError
from conan_embedding.pipeline.corpus.lock import locked
from conan_embedding.pipeline.corpus.mirror import Mirror
from conan_embedding.pipeline.corpus.object_store import ObjectStore, Stored
from conan_embedding.pipeline.corpus.shipping import Shipment, run_shipped, ship
from conan_embedding.pipeline.corpus.uris import find_folder
from s3_proxy import Bucket


def write(read: list[str], shard: Path) -> None:
    """Write what some files have, and the process's cache, which differs from attempt to attempt."""
    shard.parent.mkdir(parents=True, exist_ok=True)
    rejects(shard).parent.mkdir(exist_ok=True)
    for file in (shard, rejects(shard)):
        file.write_text("".join(Path(each).read_text() for each in read) + os.environ["CONAN_CACHE"])


@contextmanager
def driven(uri: str) -> Iterator[Mirror]:
    """Work on a corpus as its driver."""
    folder = find_folder(uri)
    with locked(folder):
        begin(folder, "filter")
        yield uris._mirrors[folder]


def run_on(node: str, shipment: Shipment, monkeypatch: pytest.MonkeyPatch) -> dict[str, Stored]:
    """Run a call on a machine with a cache of its own."""
    written: dict[str, Stored] = {}
    with monkeypatch.context() as patched:
        patched.setenv("CONAN_CACHE", f"{os.environ['CONAN_CACHE']}-{node}")
        run_shipped(shipment, written)
    return written


def read(uri: str, path: str) -> str:
    store = ObjectStore(uri)
    return b"".join(store.read(path, store.list_all()[path])).decode()


def test_a_second_attempt_adopts_what_the_first_has_put(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, rejected = "filter/part-00000.parquet", "filter/rejected/part-00000.parquet"
    for corpus in ("new", "replaced"):  # shards: none, and one of an earlier run
        uri = f"{bucket.uri}/{corpus}"
        if corpus == "replaced":
            for path in (shard, rejected):
                ObjectStore(uri).put(path, b"of an earlier run", None)
        with driven(uri) as mirror:
            (mirror.folder / "dedup" / ".work").mkdir(parents=True)
            work = mirror.folder / "dedup" / ".work" / "input"
            work.write_text("shared ")
            shipment = ship(mirror, write, ([str(work)], mirror.folder / shard))
            unheard = run_on("lost", shipment, monkeypatch)
            written = run_on("another", shipment, monkeypatch)  # whose shard has another size, as times in footers do
            assert written == unheard == run_on("lost", shipment, monkeypatch)
            assert set(written) == {shard, rejected}
            mirror.receive(written)
            assert (mirror.folder / shard).read_text().startswith("shared ")
            finish(mirror.folder, "filter", {"part-00000.parquet"})
        assert read(uri, shard) == read(uri, rejected)
        assert read(uri, shard).endswith("-lost")
        assert {path for path in ObjectStore(uri).list_all() if "work" in path} == set()


def test_what_a_killed_run_shared_is_deleted(bucket: Bucket) -> None:
    ObjectStore(bucket.uri).put("dedup/.work/left", b"", None)
    ObjectStore(bucket.uri).put("vectors/space/left", b"", None)
    with driven(bucket.uri):
        assert not any("left" in path for path in ObjectStore(bucket.uri).list_all())


def test_a_node_commits_nothing_once_the_lock_is_lost(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with driven(bucket.uri) as mirror:
        shipment = ship(mirror, write, ([], mirror.folder / "filter" / "part-00000.parquet"))
    with pytest.raises(LeaseLostError, match="the command that gave out this work no longer holds the lock"):
        run_on("released", shipment, monkeypatch)
    with driven(bucket.uri), pytest.raises(LeaseLostError):
        run_on("taken", shipment, monkeypatch)
    assert not any("part-" in path for path in ObjectStore(bucket.uri).list_all())
    ObjectStore(bucket.uri).delete(LOCK)
    with pytest.raises(LeaseLostError):
        run_on("deleted", shipment, monkeypatch)


def test_a_node_fetches_what_has_changed_and_nothing_twice(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    with driven(bucket.uri) as mirror:
        monkeypatch.setattr(bucket.proxy, "watch", lambda _, request: reads.append(request))
        work = mirror.folder / ".search.7.tmp" / "keys"
        work.parent.mkdir()
        for content in ("one", "one", "two"):
            if not work.exists() or work.read_text() != content:
                work.write_text(content)
            out = work.with_name("out")
            mirror.receive(run_on("node", ship(mirror, write, ([str(work)], out)), monkeypatch))
            assert out.read_text().startswith(content)
        assert sum(request.startswith("GET") and "keys" in request for request in reads) == 2
