"""Sources on the Hugging Face hub, `hf://datasets/…`, read from a stand-in of its HTTP interface."""

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest
from command_line import Conan
from conan_embedding.pipeline.ingest.listing import list_files
from conan_embedding.schemas.recipe import Recipe
from hub import Hub, Repository, serve_hub
from ingested import Ingested

PAIRS = [(f"问题{number}", f"回答{number}") for number in range(6)]


def lines(pairs: list[tuple[str, str]]) -> bytes:
    return "".join(json.dumps({"query": query, "positive": positive}) + "\n" for query, positive in pairs).encode()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    parquet = io.BytesIO()
    pl.DataFrame(PAIRS[4:], ["query", "positive"], orient="row").write_parquet(parquet)
    files = {
        "README.md": b"# pairs",
        "data/train-00000.jsonl": lines(PAIRS[:2]),
        "data/train-00001.jsonl.gz": gzip.compress(lines(PAIRS[2:4])),
        "data/deep/er/test.parquet": parquet.getvalue(),
    }
    with serve_hub(monkeypatch) as hub:
        hub.repositories["datasets/team/pairs"] = Repository(files=files)
        fsspec.get_filesystem_class("hf").clear_instance_cache()
        yield hub
        fsspec.get_filesystem_class("hf").clear_instance_cache()


def ingest(corpus: Path, **source: Any) -> Ingested:
    return Ingested(corpus, Recipe.model_validate({"sources": [{"name": "web", **source}]}))


@pytest.mark.parametrize(
    ("glob", "read", "pairs"),
    [
        ("data/train-*.jsonl*", "jsonl", PAIRS[:4]),
        ("data/train-00000.jsonl", "jsonl", PAIRS[:2]),
        ("**/*.parquet", "parquet", PAIRS[4:]),
    ],
)
def test_files_of_a_data_set(glob: str, read: str, pairs: list[tuple[str, str]], hub: Hub, tmp_path: Path) -> None:
    found = ingest(tmp_path / "corpus", files=f"hf://datasets/team/pairs/{glob}", read=read)
    assert sorted(found.values("query", "positive")) == pairs
    assert found.rejects.is_empty()


def test_a_file_that_changes_on_the_hub_is_another_version(hub: Hub) -> None:
    def version() -> str:
        fsspec.get_filesystem_class("hf").clear_instance_cache()
        (file,) = list_files(["hf://datasets/team/pairs/data/train-00000.jsonl"]).files
        return file.version

    before = version()
    assert version() == before
    hub.repositories["datasets/team/pairs"].files["data/train-00000.jsonl"] = lines(PAIRS[1:3])  # of the same length
    assert version() != before


def test_a_damaged_line_is_a_reject_with_the_uri(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["datasets/team/pairs"].files["data/train-00000.jsonl"] += b'{"query": \n'
    uri = "hf://datasets/team/pairs/data/train-00000.jsonl"
    found = ingest(tmp_path / "corpus", files=uri, read="jsonl")
    assert found.rejects.select("file", "line", "reason").rows() == [(uri, 3, "broken_json")]


def test_a_data_set_that_is_not_there(hub: Hub, tmp_path: Path, conan: Conan) -> None:
    (tmp_path / "recipe.yaml").write_text("sources: [{name: a, files: hf://datasets/team/other/*.jsonl, read: jsonl}]")
    code, _, said = conan("ingest", tmp_path / "corpus", "--recipe", tmp_path / "recipe.yaml")
    assert code == 1
    assert "team/other/*.jsonl (repository not found). If the repo is private, make sure you are authenticated" in said
