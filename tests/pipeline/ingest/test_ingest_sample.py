"""Ingest the whole sample: every row that was written becomes a pair or a reject."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conan_embedding.pipeline.corpus import folder as folders
from conan_embedding.pipeline.demo.generate import Planted, write_sample
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.schemas.recipe import Recipe, load
from ingested import Ingested

RECIPE = Path(__file__).parents[3] / "recipes/demo.yaml"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Recipe, Planted, Ingested, Path]]:
    folder = tmp_path_factory.mktemp("ingest")
    planted = write_sample(folder / "sources")
    recipe = load(RECIPE, [f"variables.root={folder / 'sources'}"])
    yield recipe, planted, Ingested(folder / "corpus", recipe, Engine(workers=2)), folder
    shutil.rmtree(folder)


Sample = tuple[Recipe, Planted, Ingested, Path]


def test_every_row_of_the_sample_is_accounted_for(sample: Sample) -> None:
    recipe, planted, found, folder = sample
    summary = found.summary
    assert summary.rows_in == summary.rows_out + summary.rejected.total()
    assert (summary.rows_out, summary.rejected.total()) == (found.pairs.height, found.rejects.height)
    assert summary.rejected == {
        "truncated": planted["truncated_files"],
        "broken_json": planted["broken_lines"] + planted["truncated_files"],  # the rest of it is not valid JSON
        "nul_bytes": planted["nul_lines"],
    }
    (skipped,) = summary.notes["skipped_files"]
    assert f": {planted['empty_files']} empty, such as " in skipped
    assert summary.empty_sources == []
    assert set(found.pairs["category"]) == {source.category for source in recipe.sources}
    assert folders.committed(folder / "corpus", "evaluation")


def test_every_record_of_the_sample_is_a_pair(sample: Sample) -> None:
    _, planted, found, folder = sample
    expected = Counter(
        {kind.partition("/")[2]: count for kind, count in planted.items() if kind.startswith("records/")}
    )
    expected["chats"] *= 2  # two exchanges each
    triples = (folder / "sources/triples.jsonl").read_text("utf-8").splitlines()
    expected["triples"] = sum(len(json.loads(line)["pos"]) for line in triples)
    assert Counter(found.pairs["source"]) == expected


def test_the_sample_is_the_same_with_one_worker(sample: Sample) -> None:
    recipe, _, found, folder = sample
    alone = Ingested(folder / "alone", recipe)
    assert alone.pairs.equals(found.pairs)
    assert alone.rejects.equals(found.rejects)
    assert [folders.read_footer(shard).content for shard in folders.shards(folder / "alone", "ingest")] == [
        folders.read_footer(shard).content for shard in folders.shards(folder / "corpus", "ingest")
    ]
