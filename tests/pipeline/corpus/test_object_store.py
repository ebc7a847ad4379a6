"""Objects are written under conditions, as a whole, and what goes wrong is said in a sentence."""

from pathlib import Path

import pytest
from conan_embedding.pipeline.corpus import object_store
from conan_embedding.pipeline.corpus.object_store import ChangedError, ObjectStore, StoreError
from s3_proxy import Bucket


@pytest.fixture
def store(bucket: Bucket) -> ObjectStore:
    return ObjectStore(f"{bucket.uri}/corpora/zh")


def test_a_write_replaces_only_what_it_says(store: ObjectStore) -> None:
    first = store.put("a", b"1", None)
    with pytest.raises(ChangedError, match="something else has written here"):
        store.put("a", b"2", None)
    second = store.put("a", b"3", first)
    for before in (first, '"another"'):
        with pytest.raises(ChangedError):
            store.put("a", b"4", before)
    assert {path: found.etag for path, found in store.list_all().items()} == {"a": second}
    store.delete("a")
    with pytest.raises(ChangedError):
        store.put("a", b"5", second)
    assert store.find("a") is None
    assert store.list_all() == {}


@pytest.mark.parametrize("size", [0, 10, 12 << 20])
def test_files_come_back_as_they_were(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(object_store, "PART", 5 << 20)  # the least that S3 takes
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    store.upload("deep/er/file", file, None, lambda: None)
    with pytest.raises(ChangedError):
        store.upload("deep/er/file", file, None, lambda: None)
    stored = store.list_all("deep")["deep/er/file"]
    assert stored == store.find("deep/er/file")
    assert b"".join(store.read("deep/er/file", stored)) == file.read_bytes()


def test_an_upload_that_dies_leaves_nothing(
    store: ObjectStore, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PART", 5 << 20)
    file = tmp_path / "file"
    file.write_bytes(bytes(12 << 20))
    bucket.proxy.fault = lambda method, path: "refuse" if "partNumber=3" in path else None
    with pytest.raises(StoreError, match=r"s3://bucket-.*/corpora/zh: .*check the network and AWS_ENDPOINT_URL"):
        store.upload("file", file, None, lambda: None)
    assert store.list_all() == {}
    uploads = store.client.list_multipart_uploads(Bucket=store.bucket)
    assert "Uploads" not in uploads, "the parts are still there"

    def lost() -> None:
        raise RuntimeError

    bucket.proxy.fault = lambda method, path: None
    with pytest.raises(RuntimeError):
        store.upload("file", file, None, lost)
    assert store.list_all() == {}


def test_a_write_whose_answer_was_lost_counts(
    store: ObjectStore, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    store = ObjectStore(store.uri)
    lost = iter([True])
    bucket.proxy.fault = lambda method, path: "forget" if method == "PUT" and next(lost, False) else None
    etag = store.put("a", b"1", None)  # sent twice: the second is refused, because the first was carried out
    assert store.list_all()["a"].etag == etag
    assert len(bucket.proxy.writes) == 1


def test_reading_goes_on_where_it_broke_off(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    etag = store.put("a", b"0123456789", None)
    stored = store.list_all()["a"]
    asked, ask = [], store._ask

    def break_off(operation: str, path: str, **arguments: str) -> object:
        asked.append(arguments["Range"])
        answer = ask(operation, path, **arguments)
        if len(asked) == 1:
            answer["Body"] = type("Body", (), {"iter_chunks": lambda self, size: cut()})()
        return answer

    def cut() -> object:
        yield b"012"
        raise object_store.IncompleteReadError(actual_bytes=3, expected_bytes=10)

    monkeypatch.setattr(store, "_ask", break_off)
    assert b"".join(store.read("a", stored)) == b"0123456789"
    assert asked == ["bytes=0-", "bytes=3-"]
    monkeypatch.undo()
    store.put("a", b"another", etag)
    with pytest.raises(ChangedError):
        list(store.read("a", stored))


def test_errors_name_the_uri_and_what_to_do(
    store: ObjectStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.proxy.fault = lambda method, path: "503"
    with pytest.raises(StoreError, match=r"^s3://bucket-.*: the store asks for fewer requests; .* \(ListObjectsV2"):
        store.list_all()
    with pytest.raises(StoreError, match=r"^s3://no-such-bucket-here/zh: there is no such bucket; check the name"):
        bucket.proxy.fault = lambda method, path: None
        ObjectStore("s3://no-such-bucket-here/zh").list_all()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="check the network and AWS_ENDPOINT_URL, then run the same command again"):
        ObjectStore(store.uri).list_all()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreError, match="no credentials; set AWS_ACCESS_KEY_ID"):
        ObjectStore(store.uri).list_all()
