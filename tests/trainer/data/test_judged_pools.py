"""Fine-tuning data follow a judge's decisions: positives, pools, queries, and the groups of batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from conan_embedding.pipeline.corpus.pools import write_decisions
from conan_embedding.schemas.errors import CorpusError
from conan_embedding.schemas.prompts import Prompts
from conan_embedding.schemas.recipe import Recipe
from conan_embedding.trainer.data.batches import finetune_batch
from conan_embedding.trainer.data.training_tables import FinetuneData, count_queries, read_finetune, write_finetune
from conan_embedding.trainer.dhnm.refresh import write_mined
from conan_embedding.trainer.dhnm.windows import start
from conan_embedding.workflow import training_job

Shards = Callable[[Path, str], list[Path]]

POOL = [60, 61, 62, 63, 64]
PASSAGES = {
    0: ("正零", [0]),
    1: ("正一", [1]),
    2: ("正二", [2]),
    60: ("甲", [60]),
    61: ("乙", [61, 90]),
    62: ("丙", [62]),
    63: ("丁", [90]),
    64: ("戊", [64]),
}


@pytest.fixture
def corpus(tmp_path: Path, write: Any) -> Path:
    """Three queries: the first has two positives, the last one that no other text is like."""
    places = {number: place for place, number in enumerate(PASSAGES)}
    write.mined(
        tmp_path,
        {places[number]: passage for number, passage in PASSAGES.items()},
        {query: [places[number] for number in POOL] for query in ("问零", "问一", "问二")},
    )
    records = [("问零", ["正零", "正一"], [0, 1]), ("问一", ["正一"], [1]), ("问二", ["正二"], [2])]
    write.shard(
        tmp_path,
        "retrieval",
        [
            {
                "source": "web",
                "query": query,
                "positives": positives,
                "cluster_ids": clusters,
                "negatives": ["戊", "外"],
            }
            for query, positives, clusters in records
        ],
    )
    with duckdb.connect(str(tmp_path / "pools.duckdb")) as pools:
        pools.execute("INSERT INTO mined_positives VALUES (0, 0, 0.9), (0, 1, 0.9), (1, 1, 0.9), (2, 2, 0.9)")
    return tmp_path


def decide(corpus: Path, *decisions: tuple[int, int, str]) -> None:
    """Decide on query and passage, by its number in PASSAGES."""
    places = {number: place for place, number in enumerate(PASSAGES)}
    rows = [
        {"query_id": query, "passage_id": places[number], "decision": decision, "judge": "j", "score": 0.5}
        for query, number, decision in decisions
    ]
    write_decisions(corpus, pa.Table.from_pylist(rows), "{}")


def read(corpus: Path, shards: Shards) -> FinetuneData:
    found = {"retrieval": shards(corpus, "retrieval")}
    folder = corpus / "data"
    folder.mkdir()
    write_finetune(folder, corpus, found, [])
    data = read_finetune(folder)
    assert count_queries(corpus, found) == len(data.query_ids)
    return data


def rows(data: FinetuneData) -> dict[str, tuple[list[str], list[list[int]], list[str], list[str]]]:
    taken = data.queries.take(np.arange(len(data.query_ids))).to_pylist()
    texts = data.passages.take(np.arange(len(PASSAGES)))["text"].to_pylist()
    return {
        row["query"]: (
            row["positives"],
            [sorted(each) for each in row["clusters"]],
            row["provided"],
            [texts[place] for place in row["pool"]],
        )
        for row in taken
    }


def test_data_follow_the_decisions(corpus: Path, shards: Shards) -> None:
    decide(corpus, (0, 64, "positive"), (0, 61, "ambiguous"), (0, 1, "irrelevant"), (2, 2, "irrelevant"))
    aside = [61, 64, 90]
    assert rows(read(corpus, shards)) == {
        "问零": (["正零", "戊"], [[0, *aside], aside], ["外"], ["甲", "丙", "丁"]),
        "问一": (["正一"], [[1]], ["戊", "外"], ["甲", "乙", "丙", "丁", "戊"]),
    }


def test_a_relabelled_candidate_saves_its_query(corpus: Path, shards: Shards) -> None:
    decide(corpus, (2, 2, "irrelevant"), (2, 60, "positive"))
    found = rows(read(corpus, shards))
    assert found["问二"] == (["甲"], [[60]], ["戊", "外"], ["乙", "丙", "丁", "戊"]) and len(found) == 3


def test_what_is_set_aside_is_no_negative_in_a_batch_either(corpus: Path, shards: Shards) -> None:
    """丁 is a near-duplicate of 乙, and a negative of the second query in the same batch."""
    decide(corpus, (0, 61, "ambiguous"))
    data = read(corpus, shards)
    batch = finetune_batch(
        data,
        start(data.pool_sizes, 4, np.zeros(3, np.int64)),
        np.arange(3),
        np.arange(0),
        4,
        np.zeros(3, np.int64),
        Prompts(),
    )
    group = dict(zip(batch.texts, batch.groups.tolist(), strict=True))
    assert group["问零"] == group["正零"] == group["乙"] == group["丁"]
    assert len({group[text] for text in ("问零", "问一", "问二", "甲", "丙")}) == 5


def test_remining_never_brings_back_what_is_set_aside(corpus: Path, shards: Shards) -> None:
    decide(corpus, (0, 61, "ambiguous"), (0, 1, "irrelevant"), (1, 64, "positive"))
    read(corpus, shards)
    write_mined(corpus / "data", corpus)
    with np.load(corpus / "data" / "mined.npz") as arrays:
        own = [part.tolist() for part in np.split(arrays["own"], arrays["own_starts"][1:-1])]
        owners = list(zip(arrays["owner"].tolist(), arrays["passage"].tolist(), strict=True))
    assert own == [[0, 1, 61, 90], [1, 64], [2]]
    assert owners == [(0, 0), (1, 1), (1, 7), (2, 2)]


def test_training_wants_pools_that_are_judged_as_the_recipe_says(training_corpus: Path, tmp_path: Path) -> None:
    plain = Recipe.model_validate({"finetune": {"model": str(tmp_path)}})
    judged = Recipe.model_validate({"finetune": {"model": str(tmp_path)}, "judge": {"relabel": {"score": 0.5}}})
    assert judged.judge
    with pytest.raises(CorpusError, match="the pools are not judged; run `conan judge"):
        training_job("finetune", training_corpus, judged)
    before = training_job("finetune", training_corpus, plain).fingerprint
    decision = {"query_id": 39, "passage_id": 60, "decision": "ambiguous", "judge": "j", "score": 0.5}
    write_decisions(training_corpus, pa.Table.from_pylist([decision]), judged.judge.decisive)
    assert training_job("finetune", training_corpus, judged).fingerprint != before
    with pytest.raises(CorpusError, match="judged, but the recipe has no `judge:`; add it, or run `conan mine"):
        training_job("finetune", training_corpus, plain)
    other = Recipe.model_validate({"finetune": {"model": str(tmp_path)}, "judge": {"relabel": {"score": 0.6}}})
    with pytest.raises(CorpusError, match="judged with other settings than the recipe's"):
        training_job("finetune", training_corpus, other)
    write_decisions(training_corpus, None, None)
    assert training_job("finetune", training_corpus, plain).fingerprint == before
