"""The lock of a corpus in an object store: one owner at a time, even if it dies."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from conan_embedding.pipeline.corpus import lease as leases
from conan_embedding.pipeline.corpus.lease import LOCK, Lease, LeaseLostError, lease
from conan_embedding.pipeline.corpus.object_store import ObjectStore, StoreError
from conan_embedding.schemas.errors import CorpusError
from s3_proxy import Bucket


@pytest.fixture
def store(bucket: Bucket) -> ObjectStore:
    return ObjectStore(f"{bucket.uri}/zh")


def test_of_many_writers_one_wins(store: ObjectStore, tmp_path: Path) -> None:
    together = Barrier(8)

    def take(number: int) -> str | None:
        held = Lease(store, tmp_path / str(number))
        together.wait()
        try:
            held.take()
        except CorpusError as error:
            return str(error)
        return None

    for _ in range(2):  # when the lock is absent, and when it was released
        with ThreadPoolExecutor(8) as threads:
            outcomes = list(threads.map(take, range(8)))
        assert outcomes.count(None) == 1
        assert all("in use by process" in each or "just been taken" in each for each in outcomes if each)
        found = store.find(LOCK)
        assert found
        store.put(LOCK, b"{}", found.etag)


def test_others_wait_until_it_is_released(store: ObjectStore, tmp_path: Path) -> None:
    with lease(store, tmp_path / "a"), pytest.raises(CorpusError, match=r"in use by process .* since .*; wait for it"):
        Lease(store, tmp_path / "b").take()
    with lease(store, tmp_path / "b"):
        pass


def test_a_dead_process_is_known_by_its_file(store: ObjectStore, tmp_path: Path) -> None:
    Lease(store, tmp_path / "a").take()
    with pytest.raises(CorpusError, match="in use by process"):
        Lease(store, tmp_path / "b").take()
    Lease(store, tmp_path / "a").take()  # only one process may use the file, so the owner is dead


def test_a_lease_that_is_not_renewed_is_lost(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = Lease(store, tmp_path / "a")
    dead.take()
    dead.check()
    content = json.loads(store.read_with_age(LOCK)[0])  # type: ignore[index]
    dead.etag = store.put(LOCK, json.dumps(content | {"seconds": -1}).encode(), dead.etag)
    other = Lease(store, tmp_path / "b")
    other.take()
    monkeypatch.setattr(leases, "SECONDS", 0.1)
    dead.renew()  # which finds that another process has the lock, and ends
    with pytest.raises(LeaseLostError, match=r"the lock was lost.*Run the same command again"):
        dead.check()
    dead.release()  # does nothing
    other.check()


def test_a_lease_is_renewed(
    store: ObjectStore, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEWALS", 1200)  # every 50 ms
    with lease(store, tmp_path / "a") as held:
        before = held.etag
        failures = iter([True])
        bucket.proxy.fault = lambda method, path: "503" if next(failures, False) else None
        until = time.monotonic() + 20
        while held.etag == before and time.monotonic() < until:
            time.sleep(0.02)
        assert held.etag != before
        held.check()
        with held.writing:
            held.until = 0.0
        held.check()  # its time was over, but nobody has taken it
        # A writer that can't reach the store must take the lease as lost when its time is over.
        bucket.proxy.fault = lambda method, path: "refuse"
        with held.writing:
            held.until = 0.0
        with pytest.raises(LeaseLostError):
            held.check()


def test_a_store_without_conditions_is_refused(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = store.client.put_object

    def ignore_conditions(**arguments: object) -> object:
        return put(**{name: value for name, value in arguments.items() if name not in ("IfMatch", "IfNoneMatch")})

    monkeypatch.setattr(store.client, "put_object", ignore_conditions)
    with pytest.raises(StoreError, match="ignores the conditions of writes"), lease(store, tmp_path / "a"):
        pass
