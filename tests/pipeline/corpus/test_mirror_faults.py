"""Whatever fails on the way to an object store, nothing is lost and nothing is doubled."""

import itertools
from pathlib import Path

import pytest
from conan_embedding.api import run_stage
from conan_embedding.pipeline.corpus import lease, mirror
from conan_embedding.pipeline.corpus.folder import is_interrupted
from conan_embedding.pipeline.corpus.lease import LOCK, LeaseLostError
from conan_embedding.pipeline.corpus.object_store import ObjectStore, StoreError
from conan_embedding.pipeline.corpus.uris import find_folder
from properties import FUZZ
from s3_proxy import Bucket, Fault
from uri_corpora import Rows, make_recipe, read_rows


class Machines:
    """Machines with caches of their own; each begins with an empty one."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch

    def __call__(self, name: object) -> None:
        self.monkeypatch.setenv("CONAN_CACHE", str(self.folder / f"machine-{name}"))


@pytest.fixture
def use_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    return Machines(tmp_path, monkeypatch)


def die_after(writes: int, kind: str) -> Fault:
    """Let some writes through; then nothing comes through any more, as after a kill or the end of a network."""
    left = iter(range(writes))

    def fault(method: str, path: str) -> str | None:
        if method in ("PUT", "DELETE") and next(left, None) is not None:
            return None
        return None if method in ("GET", "HEAD") and kind == "503" else kind

    return fault


def let_lock_end(uri: str) -> None:
    """Do what time does to the lock of a process that was killed on another machine."""
    ObjectStore(uri).delete(LOCK)


def rows_of(corpus: str | Path, folder: str) -> Rows:
    found = find_folder(corpus)
    assert not is_interrupted(found, folder)
    return read_rows(found, folder)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ingest", "filter"] if FUZZ else ["filter"])
def test_a_run_that_dies_at_any_write_is_taken_up(
    bucket: Bucket, tmp_path: Path, use_machine: Machines, stage: str
) -> None:
    """One run leaves two shards; the next, one of them or, after filter, two with other rows; and so on.

    Each dies after one write more than the one before; every second time, a machine with an empty cache continues.
    """
    recipes = [make_recipe(tmp_path, sources=2)]
    recipes.append(make_recipe(tmp_path, sources=1 if stage == "ingest" else 2, shortest=30))
    wanted = []
    for number, recipe in enumerate(recipes):
        for each in ("ingest", "filter"):
            run_stage(each, tmp_path / f"local-{number}", recipe, workers=1)
        wanted.append(rows_of(tmp_path / f"local-{number}", stage))
    assert wanted[0] != wanted[1]
    use_machine(0)
    for each in ("ingest", "filter"):
        run_stage(each, bucket.uri, recipes[1], workers=1)
    deaths = 0
    for number in itertools.count(1):
        recipe = recipes[number % 2]
        bucket.proxy.fault = die_after(number, "503" if number % 4 < 2 else "refuse")
        try:
            run_stage(stage, bucket.uri, recipe, workers=1)
        except StoreError as error:
            assert str(error).startswith(f"{bucket.uri}: ")
            assert "run the same command again" in str(error)
            deaths += 1
        bucket.proxy.fault = lambda method, path: None
        if number % 2:
            use_machine(number)
            let_lock_end(bucket.uri)
        run_stage(stage, bucket.uri, recipe, workers=1)
        use_machine(f"reader-{number}")
        assert rows_of(bucket.uri, stage) == wanted[number % 2], number
        use_machine(number - 1 + number % 2)
        if deaths < number:  # it came to its end before
            break
    assert deaths > 5


def test_throttling_that_ends_is_not_noticed(
    bucket: Bucket, tmp_path: Path, use_machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "4")
    requests = itertools.count()
    bucket.proxy.fault = lambda method, path: "503" if next(requests) % 5 == 0 else None
    run_stage("ingest", f"{bucket.uri}/zh", make_recipe(tmp_path, sources=2), workers=1)
    bucket.proxy.fault = lambda method, path: None
    use_machine("reader")
    assert len(read_rows(find_folder(f"{bucket.uri}/zh"), "ingest")) == 2


def test_a_listing_that_lags_loses_nothing(
    bucket: Bucket, tmp_path: Path, use_machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    many, few = make_recipe(tmp_path, sources=3), make_recipe(tmp_path, sources=2)
    run_stage("ingest", bucket.uri, many, workers=1)
    whole = rows_of(bucket.uri, "ingest")
    # A machine that does not see one of the shards writes it again; it ends when the listing has it.
    use_machine("second")
    bucket.proxy.hidden = {"ingest/part-00001.parquet"}
    monkeypatch.setattr(mirror, "LISTED_WITHIN", 0.3)
    with pytest.raises(StoreError, match=r"ingest/part-00001\.parquet was put, but the store does not list it; run"):
        run_stage("ingest", bucket.uri, many, workers=1)
    bucket.proxy.hidden = set()
    use_machine("reader")
    assert is_interrupted(find_folder(bucket.uri), "ingest")
    use_machine("second")
    run_stage("ingest", bucket.uri, many, workers=1)
    assert rows_of(bucket.uri, "ingest") == whole
    # A machine that does not see a shard that is to go finds it at the end.
    use_machine("third")
    bucket.proxy.hidden = {"ingest/part-00002.parquet"}

    def show_at_the_end(method: str, path: str) -> None:
        if method == "GET" and "prefix=ingest/" in path and next(listings) == 1:
            bucket.proxy.hidden = set()

    listings = itertools.count()
    bucket.proxy.fault = show_at_the_end
    run_stage("ingest", bucket.uri, few, workers=1)
    bucket.proxy.fault = lambda method, path: None
    use_machine("reader")
    assert rows_of(bucket.uri, "ingest") == {name: whole[name] for name in sorted(whole)[:2]}


def test_a_writer_that_lost_its_lock_uploads_nothing_more(
    bucket: Bucket, tmp_path: Path, use_machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(tmp_path, sources=2)
    monkeypatch.setattr(lease, "RENEWALS", 0.01)  # as if the process stood still
    other = []

    def take_over(method: str, path: str) -> None:
        if method == "PUT" and "ingest/part-00000" in path and not other:
            held = next(each for each in mirrors() if each.lease).lease
            held.until, held.etag = 0.0, '"that of another process"'
            other.append(path)

    def mirrors() -> list[mirror.Mirror]:
        from conan_embedding.pipeline.corpus import uris

        return list(uris._mirrors.values())

    bucket.proxy.fault = take_over
    with pytest.raises(LeaseLostError, match=rf"^{bucket.uri}: the lock was lost"):
        run_stage("ingest", bucket.uri, recipe, workers=1)
    assert sum("ingest/part-" in write for write in bucket.proxy.writes) == 1
    use_machine("other")
    let_lock_end(bucket.uri)
    run_stage("ingest", bucket.uri, recipe, workers=1)
    assert len(rows_of(bucket.uri, "ingest")) == 2
