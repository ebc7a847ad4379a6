"""Sources in an object store: a glob of them is ingested like files on a disk."""

import gzip
import io
import json
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest
from conan_embedding.pipeline.corpus import folder as folders
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.ingest import splits
from conan_embedding.pipeline.ingest.files import stat_file
from conan_embedding.pipeline.ingest.listing import list_files
from conan_embedding.pipeline.ingest.stage import ingest
from conan_embedding.schemas.recipe import Recipe
from object_store import serve_s3

PAIRS = [(f"问题{number}", f"回答{number}") for number in range(60)]


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with serve_s3() as variables:
        yield variables


@pytest.fixture(params=["memory", "s3"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a store's folder as recipes name it; the credentials are in the environment, as on a cluster."""
    if request.param == "memory":
        return f"memory:///{uuid.uuid4().hex}"
    for name, value in request.getfixturevalue("server").items():
        monkeypatch.setenv(name, value)
    bucket = uuid.uuid4().hex
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
    return f"s3://{bucket}/deep/er"


def put(store: str, **named: bytes) -> None:
    """Write files; an argument's name with dots for _ is the file's name."""
    for name, data in named.items():
        with fsspec.open(f"{store}/{name.replace('_', '.')}", "wb") as file:
            file.write(data)


def lines(pairs: list[tuple[str, str]]) -> bytes:
    return "".join(json.dumps({"query": query, "positive": positive}) + "\n" for query, positive in pairs).encode()


def ingest_source(corpus: Path, **source: Any) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the pairs, and file and reason of the rejects."""
    recipe = Recipe.model_validate({"sources": [{"name": "web", **source}]})
    ingest(corpus, recipe, Engine(workers=1))
    shards = folders.shards(corpus, "ingest")
    pairs = pl.concat([pl.read_parquet(shard, columns=["query", "positive"]) for shard in shards])
    rejects = pl.concat([pl.read_parquet(folders.rejects(shard), columns=["file", "reason"]) for shard in shards])
    return pairs.rows(), rejects.rows()


def test_a_glob_of_lines_some_of_them_packed(store: str, tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("c.jsonl", lines(PAIRS[40:50]))
        opened.writestr("../d.jsonl", lines(PAIRS[50:]))
    cut = gzip.compress(lines(PAIRS))[:-8]
    put(store, a_jsonl=lines(PAIRS[:20]), b_jsonl_gz=gzip.compress(lines(PAIRS[20:40])), c_zip=archive.getvalue())
    put(store, e_jsonl_gz=cut, f_txt=b"of no interest", g_jsonl=b"no json\n")
    pairs, rejects = ingest_source(
        tmp_path, read="jsonl", files=[f"{store}/*.jsonl*", f"{store}/*.zip"], exclude=f"{store}/e*"
    )
    assert sorted(pairs) == sorted(PAIRS)
    assert rejects == [(f"{store}/g.jsonl", "broken_json")]
    pairs, rejects = ingest_source(tmp_path, read="jsonl", files=f"{store}/e.jsonl.gz")
    assert pairs == PAIRS
    assert rejects == [(f"{store}/e.jsonl.gz", "truncated")]


def test_large_files_are_cut(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    frame = pl.DataFrame(PAIRS, ["query", "positive"], orient="row")
    frame.write_parquet(buffer, row_group_size=10)
    put(store, a_parquet=buffer.getvalue(), b_jsonl=lines(PAIRS), c_tsv=frame.write_csv(separator="\t").encode())
    monkeypatch.setattr(splits, "SHARD_BYTES", 300)
    for read in ("parquet", "jsonl", "tsv"):
        pairs, rejects = ingest_source(tmp_path / read, read=read, files=f"{store}/*.{read}")
        assert pairs == PAIRS
        assert rejects == []
        assert len(folders.shards(tmp_path / read, "ingest")) >= 3


def test_what_is_not_there(store: str, tmp_path: Path) -> None:
    put(store, a_jsonl=lines(PAIRS))
    assert list_files([f"{store}/nothing*", f"{store}/nowhere.jsonl"]).files == []
    (file,) = list_files([f"{store}/a.jsonl"]).files
    assert (file.path, file.size) == (f"{store}/a.jsonl", len(lines(PAIRS)))
    assert stat_file(f"{store}/a.jsonl") == file
    put(store, a_jsonl=lines(PAIRS[:30]))
    fsspec.core.url_to_fs(store)[0].invalidate_cache()
    assert list_files([f"{store}/*"]).files[0].version != file.version
