"""A corpus at s3:// has the rows of a local one, on any machine, and nothing is written twice."""

import json
import multiprocessing
import shutil
from pathlib import Path

import polars as pl
import pytest
from command_line import Conan
from conan_embedding.api import Corpus, run_stage
from conan_embedding.pipeline.corpus import folder as folders
from conan_embedding.pipeline.corpus.lock import locked
from conan_embedding.pipeline.corpus.object_store import ChangedError, ObjectStore, StoreError
from conan_embedding.pipeline.corpus.uris import fetch, find_folder, shown
from conan_embedding.schemas.errors import CorpusError
from conan_embedding.schemas.recipe import Recipe
from s3_proxy import Bucket
from uri_corpora import make_recipe, read_rows

STAGES = ("ingest", "filter", "dedup", "score", "convert", "mine")


def move(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """Go on as another machine does, whose cache is empty."""
    monkeypatch.setenv("CONAN_CACHE", str(tmp_path / name))


def run_all(corpus: str | Path, recipe: Recipe) -> None:
    for stage in STAGES:
        run_stage(stage, corpus, recipe, workers=1)


@pytest.mark.slow
def test_rows_are_those_of_a_local_corpus(
    bucket: Bucket, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(tmp_path, sources=3, model=tiny)
    uri = f"{bucket.uri}/corpora/zh"
    run_all(tmp_path / "local", recipe)
    run_all(uri, recipe)
    move(monkeypatch, tmp_path, "elsewhere")
    mirror = find_folder(uri)
    for folder in folders.FOLDERS:
        assert read_rows(mirror, folder) == read_rows(tmp_path / "local", folder), folder
        assert (mirror / folder).is_dir()  # convert/sts has no shards, and still has been written
    assert Corpus(uri).sql("FROM funnel").equals(Corpus(tmp_path / "local").sql("FROM funnel"))
    assert Corpus(uri).rejected().height == Corpus(tmp_path / "local").rejected().height > 0
    assert Corpus(uri).pools().equals(Corpus(tmp_path / "local").pools())

    bucket.proxy.writes.clear()
    run_all(uri, recipe)
    assert [write for write in bucket.proxy.writes if "part-" in write] == []


def test_a_machine_goes_on_where_another_stopped(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(tmp_path, sources=2)
    run_stage("ingest", bucket.uri, recipe, workers=1)
    move(monkeypatch, tmp_path, "elsewhere")
    assert Corpus(bucket.uri).sql("SELECT count(*) AS rows FROM filter").item() == 0
    assert not list(find_folder(bucket.uri).glob("ingest/*.parquet"))  # the query does not ask about it
    run_stage("filter", bucket.uri, workers=1)  # with the recipe of the corpus
    grown = make_recipe(tmp_path, sources=3)
    bucket.proxy.writes.clear()
    run_stage("ingest", bucket.uri, grown, workers=1)
    assert sum("ingest/part-" in write for write in bucket.proxy.writes) == 1  # the new source
    assert Corpus(bucket.uri).sql("SELECT count(*) AS rows FROM ingest").item() == 33
    monkeypatch.setenv("CONAN_CACHE", str(tmp_path / "cache"))  # the first machine, which has an old copy
    run_stage("filter", bucket.uri, workers=1)
    run_stage("ingest", tmp_path / "local", grown, workers=1)
    run_stage("filter", tmp_path / "local", workers=1)
    assert read_rows(find_folder(bucket.uri), "filter") == read_rows(tmp_path / "local", "filter")


def test_what_was_not_uploaded_is_not_committed(bucket: Bucket, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, sources=2)
    run_stage("ingest", bucket.uri, recipe, workers=1)
    mirror = find_folder(bucket.uri)
    before = read_rows(mirror, "ingest")
    first, second = folders.committed(mirror, "ingest")
    first.rename(first.with_name("part-00007.parquet"))  # written, but the process died
    second.write_bytes(b"other bytes")
    (mirror / "ingest" / ".incomplete").touch()
    (mirror / "judgements").mkdir()
    (mirror / "judgements" / "new.parquet").write_bytes(b"paid for")
    assert find_folder(bucket.uri) == mirror
    assert read_rows(mirror, "ingest") == before
    assert not folders.is_interrupted(mirror, "ingest")
    assert (mirror / "judgements" / "new.parquet").exists()
    run_stage("ingest", bucket.uri, recipe, workers=1)
    assert any("judgements/new.parquet" in write for write in bucket.proxy.writes)


def test_pools_that_another_writer_replaced_are_not_overwritten(bucket: Bucket, tmp_path: Path) -> None:
    store = ObjectStore(bucket.uri)
    store.put("pools.duckdb", b"1", None)
    mirror = find_folder(bucket.uri)
    with pytest.raises(ChangedError, match="something else has written here meanwhile"), locked(mirror):
        fetch(mirror, "pools.duckdb")
        (mirror / "pools.duckdb").write_bytes(b"changed here")
        store.put("pools.duckdb", b"changed there", store.list_all()["pools.duckdb"].etag)
    find_folder(bucket.uri)
    fetch(mirror, "pools.duckdb")
    assert (mirror / "pools.duckdb").read_bytes() == b"changed there"
    with locked(mirror):
        (mirror / "pools.duckdb").write_bytes(b"changed under the lock")
    assert b"".join(store.read("pools.duckdb", store.list_all()["pools.duckdb"])) == b"changed under the lock"


def test_progress_is_shown(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_stage("ingest", bucket.uri, make_recipe(tmp_path, sources=2), workers=1)
    move(monkeypatch, tmp_path, "elsewhere")
    told: list[tuple[object, ...]] = []
    mirror = find_folder(bucket.uri)
    with shown(mirror, lambda *progress: told.append(progress)):
        folders.committed(mirror, "ingest")
    assert told == [("fetch", number, 4, 0) for number in (1, 2, 3, 4)]  # shards and rejects


def test_a_cache_that_is_deleted_deletes_nothing(bucket: Bucket, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, sources=2)
    run_stage("ingest", bucket.uri, recipe, workers=1)
    mirror = find_folder(bucket.uri)
    before = set(ObjectStore(bucket.uri).list_all())
    with pytest.raises(StoreError, match="was deleted while this command used it; run the"), locked(mirror):
        shutil.rmtree(mirror)
        (mirror / "judgements").mkdir(parents=True)
        (mirror / "judgements" / "new.parquet").write_bytes(b"paid for")
    assert before <= set(ObjectStore(bucket.uri).list_all())


def test_processes_of_one_machine_have_folders_of_their_own(bucket: Bucket, tmp_path: Path) -> None:
    run_stage("ingest", bucket.uri, make_recipe(tmp_path, sources=1), workers=1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        other = pool.apply(find_folder, [bucket.uri])
    assert {find_folder(bucket.uri).name, other.name} == {"0", "1"}


def test_a_second_writer_is_refused(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(tmp_path, sources=1)
    with locked(find_folder(bucket.uri)):
        move(monkeypatch, tmp_path, "elsewhere")
        with pytest.raises(CorpusError, match=rf"{bucket.uri} is in use by process \d+ on .*; wait for it"):
            run_stage("ingest", bucket.uri, recipe, workers=1)
    run_stage("ingest", bucket.uri, recipe, workers=1)


def test_command_line(bucket: Bucket, tmp_path: Path, conan: Conan, recipe: Path) -> None:
    uri = f"{bucket.uri}/zh"
    assert conan("ingest", uri, "--recipe", recipe, "--json")[0] == 0
    code, out, _ = conan("sql", uri, "SELECT count(*) AS pairs FROM ingest", "--json")
    assert (code, json.loads(out)) == (0, {"pairs": 3})
    code, _, error = conan("dedup", uri)
    assert code == 1
    assert f"{uri}/filter: no shards; run `conan filter {uri}` first" in error.replace("\n", " ")
    code, _, error = conan("sql", f"{uri}-other", "FROM ingest")
    assert code == 1
    assert f"{uri}-other: no such folder; name the corpus" in error.replace("\n", " ")
    assert conan("ingest", f"file://{tmp_path}/local", "--recipe", recipe, "--json")[0] == 0
    assert pl.read_parquet(tmp_path / "local" / "ingest" / "*.parquet").height == 3
