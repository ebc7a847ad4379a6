"""The content of each batch, against plain loops over the same records."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from conan_embedding.schemas.prompts import Prompts
from conan_embedding.schemas.training_settings import FinetuneSettings, PretrainSettings
from conan_embedding.trainer.data.batches import count_steps, finetune_batch, pretrain_batch
from conan_embedding.trainer.data.training_tables import (
    FinetuneData,
    PairData,
    provided_counts,
)
from conan_embedding.trainer.dhnm.negatives import start_negatives
from conan_embedding.trainer.dhnm.windows import Windows, advance, start
from training_data import Read, Shards, column


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (PretrainSettings(batch_size=5, steps=7), 7),
        (PretrainSettings(batch_size=5), 10),
        (PretrainSettings(batch_size=5, epochs=2.5), 25),
        (PretrainSettings(batch_size=5, epochs=0.001), 1),
    ],
)
def test_steps_are_given_or_follow_from_epochs(settings: PretrainSettings, steps: int) -> None:
    assert count_steps(settings, records=101, sentences=0, world_size=2) == steps


@pytest.mark.parametrize(
    ("alternate_tasks", "sts_batch", "sentences", "steps"),
    [(False, 32, 5, 10), (True, 32, 5, 20), (True, 32, 0, 10), (True, 0, 5, 10)],
)
def test_where_tasks_alternate_every_other_step_has_queries(
    alternate_tasks: bool, sts_batch: int, sentences: int, steps: int
) -> None:
    settings = FinetuneSettings(retrieval_batch=8, sts_batch=sts_batch, alternate_tasks=alternate_tasks)
    assert count_steps(settings, records=80, sentences=sentences, world_size=2) == steps


def test_an_update_for_pretraining_is_its_rows(
    shared_training_corpus: Path, shards: Shards, pairs_of: Callable[..., PairData]
) -> None:
    data = pairs_of(*shards(shared_training_corpus, "pretrain"))
    queries, positives = column(data.pairs, "query"), column(data.pairs, "positive")
    rows = np.array([7, 0, 6])
    update = pretrain_batch(data, rows, Prompts())
    assert [update.texts[row] for row in update.query_rows] == [queries[row] for row in rows]
    assert [update.texts[row] for row in update.positive_rows] == [positives[row] for row in rows]
    groups = update.groups[update.positive_rows].tolist()
    assert groups[0] == groups[2] != groups[1]  # rows 6 and 7 are in one cluster
    assert update.negative_rows.shape == (3, 0)


def test_a_query_is_on_its_own_if_one_of_its_sources_is(tmp_path: Path, write: Any, read: Read) -> None:
    write.shard(
        tmp_path,
        "retrieval",
        [
            {"source": source, "query": query, "positives": [f"{query}{source}"], "cluster_ids": [i], "negatives": []}
            for i, (source, query) in enumerate([("a", "一"), ("a", "二"), ("b", "二"), ("b", "三"), ("c", "四")])
        ],
    )
    write.mined(tmp_path, {0: ("五", 5)}, {query: [0] for query in "一二三四"})
    data = read(tmp_path, "retrieval", query_only=["b", "d"])
    windows = start(data.pool_sizes, 4, provided_counts(data))
    rows = np.array([3, 0, 1, 2])
    batch = finetune_batch(data, windows, rows, np.arange(0), 4, np.zeros(4, np.int64), Prompts())
    assert [batch.texts[row] for row in batch.query_rows] == list("四一二三")
    assert batch.query_only.tolist() == [False, False, True, True]


def negatives_of(data: FinetuneData, windows: Windows, rows: list[int], visit: int = 0) -> list[list[str]]:
    update = finetune_batch(data, windows, np.array(rows), np.arange(2), 4, np.full(len(rows), visit), Prompts())
    queries, positives = column(data.queries, "query"), column(data.queries, "positives")
    assert [update.texts[row] for row in update.query_rows] == [queries[row] for row in rows]
    for row, text in zip(rows, update.positive_rows, strict=True):
        assert update.texts[text] == positives[row][visit % len(positives[row])]
    assert [update.texts[row] for row in update.left_rows] == column(data.sentences, "text_a")[:2]
    assert [update.texts[row] for row in update.right_rows] == column(data.sentences, "text_b")[:2]
    assert update.labels.tolist() == column(data.sentences, "label")[:2]
    return [[update.texts[row] for row in each if row >= 0] for each in update.negative_rows]


def test_negatives_are_those_of_the_windows(shared_training_corpus: Path, read: Read) -> None:
    data = read(shared_training_corpus, "retrieval")
    windows = start(data.pool_sizes, 4, provided_counts(data))
    texts, provided = column(data.passages, "text"), column(data.queries, "provided")
    pools = [[texts[i] for i in each] for each in column(data.queries, "pool")]
    rows = [0, 1, 3, 10, 39]  # provided and no pool; one candidate; three; provided and a pool; many
    expected = [provided[0], pools[1], pools[3], provided[10], pools[39][:4]]
    assert negatives_of(data, windows, rows) == expected
    assert [len(each) for each in expected] == [2, 1, 3, 2, 4]

    moved = advance(windows, np.ones(40, np.bool_), data.pool_sizes, 4)
    moved = advance(moved, np.arange(40) == 39, data.pool_sizes, 4)
    expected = [provided[0], pools[1], pools[3], provided[10], pools[39][14:18]]
    assert negatives_of(data, moved, rows) == expected  # a query whose pool is too short keeps its window
    assert negatives_of(data, moved, [25]) == [pools[25][10:14]]


OWN = {
    "a": Prompts("aq:", "ap:", "as:"),
    "big": Prompts("bq:", "bp:", "bs:"),
    "sts": Prompts("q:", "p:", "ss:"),
    "found": Prompts("fq:", "fp:", "fs:"),
}
PROMPTS = Prompts("q:", "p:", "s:", sources=OWN)


def same_groups(one: Any, other: Any) -> bool:
    """Whether roles of two batches are grouped alike, whatever the groups' numbers and the order of the texts."""
    roles = ("query_rows", "positive_rows", "negative_rows", "left_rows", "right_rows")
    numbers = [[batch.groups[getattr(batch, role).flatten()].numpy() for role in roles] for batch in (one, other)]
    alike = [np.concatenate(each)[:, None] == np.concatenate(each) for each in numbers]
    return bool((alike[0] == alike[1]).all())


def test_a_batch_for_pretraining_has_the_prompts_of_its_sources(
    shared_training_corpus: Path, shards: Shards, pairs_of: Callable[..., PairData]
) -> None:
    data = pairs_of(*shards(shared_training_corpus, "pretrain"))
    rows = np.array([32, 33, 0, 39, 1])
    bare, batch = (pretrain_batch(data, rows, prompts) for prompts in (Prompts(), PROMPTS))
    for role, before in (("query_rows", ["aq:", "q:"]), ("positive_rows", ["ap:", "p:"])):
        texts = [bare.texts[row] for row in getattr(bare, role)]
        expected = [before[int(row >= 33)] + text for row, text in zip(rows, texts, strict=True)]
        assert [batch.texts[row] for row in getattr(batch, role)] == expected
    assert same_groups(bare, batch)


@pytest.mark.parametrize("policy", ["v1", "v2"])
def test_a_batch_for_finetuning_has_the_prompts_of_its_sources(
    training_corpus: Path, read: Read, write: Any, policy: str
) -> None:
    with duckdb.connect(str(training_corpus / "pools.duckdb")) as pools:
        pools.execute("UPDATE passages SET source = 'found' WHERE passage_id % 2 = 0")
    data = read(training_corpus, "retrieval")
    current: Any = start(data.pool_sizes, 4, provided_counts(data))
    if policy == "v2":
        current = start_negatives(data.pool_sizes, 4, provided_counts(data))
    rows, visits = np.array([0, 10, 39, 25, 3]), np.zeros(5, np.int64)
    bare, batch = (
        finetune_batch(data, current, rows, np.arange(2), 4, visits, prompts) for prompts in (Prompts(), PROMPTS)
    )
    places = {text: place for place, text in enumerate(column(data.passages, "text"))}
    provided = column(data.queries, "provided")
    for number, row in enumerate(rows.tolist()):
        of_query, of_passage = ("bq:", "bp:") if row < 30 else ("q:", "p:")
        assert batch.texts[batch.query_rows[number]] == of_query + bare.texts[bare.query_rows[number]]
        assert batch.texts[batch.positive_rows[number]] == of_passage + bare.texts[bare.positive_rows[number]]
        negatives = [bare.texts[each] for each in bare.negative_rows[number] if each >= 0]
        expected = [
            (of_passage if text in provided[row] else "fp:" if places[text] % 2 == 0 else "p:") + text
            for text in negatives
        ]
        assert [batch.texts[each] for each in batch.negative_rows[number] if each >= 0] == expected
    for role in ("left_rows", "right_rows"):
        assert [batch.texts[row] for row in getattr(batch, role)] == [
            "ss:" + bare.texts[row] for row in getattr(bare, role)
        ]
    assert same_groups(bare, batch)


def test_a_query_shows_its_positives_in_turn(shared_training_corpus: Path, read: Read) -> None:
    data = read(shared_training_corpus, "retrieval")
    windows = start(data.pool_sizes, 4, provided_counts(data))
    assert len(column(data.queries, "positives")[2]) == 2
    for visit in range(4):
        negatives_of(data, windows, [2, 30], visit)


def test_clusters_come_along(tmp_path: Path, write: Any, read: Read) -> None:
    record = {"source": "a", "query": "问", "positives": ["答"], "cluster_ids": [9], "negatives": []}
    write.shard(tmp_path, "retrieval", [record])
    write.mined(tmp_path, {0: ("近似的答", 9), 1: ("别的", 3)}, {"问": [0, 1]})
    data = read(tmp_path, "retrieval")
    windows = start(data.pool_sizes, 4, provided_counts(data))
    update = finetune_batch(data, windows, np.array([0]), np.zeros(0, np.int64), 4, np.array([0]), Prompts())
    groups = update.groups[update.negative_rows[0]].tolist()
    own = update.groups[update.positive_rows[0]].item()
    assert [group == own for group in groups] == [True, False]


def test_queries_without_any_negatives_are_an_update_too(tmp_path: Path, write: Any, read: Read) -> None:
    record = {"source": "a", "query": "问", "positives": ["答"], "cluster_ids": [9], "negatives": []}
    write.shard(tmp_path, "retrieval", [record])
    write.mined(tmp_path, {}, {"问": []})
    data = read(tmp_path, "retrieval")
    windows = start(data.pool_sizes, 4, provided_counts(data))
    update = finetune_batch(data, windows, np.array([0, 0]), np.zeros(0, np.int64), 4, np.array([0, 1]), Prompts())
    assert update.negative_rows.shape == (2, 0)


def test_an_update_may_be_of_one_task(shared_training_corpus: Path, read: Read) -> None:
    data = read(shared_training_corpus, "retrieval")
    windows, nothing = start(data.pool_sizes, 4, provided_counts(data)), np.zeros(0, np.int64)
    update = finetune_batch(data, windows, nothing, np.arange(3), 4, nothing, Prompts())
    assert (len(update.query_rows), len(update.labels), len(update.texts)) == (0, 3, 6)
    update = finetune_batch(data, windows, np.array([39]), nothing, 4, np.array([0]), Prompts())
    assert (len(update.query_rows), len(update.labels), update.negative_rows.shape) == (1, 0, (1, 4))


@pytest.mark.parametrize("policy", ["v1", "v2"])
def test_texts_have_all_clusters_of_their_passages(tmp_path: Path, write: Any, read: Read, policy: str) -> None:
    """A provided negative that is a passage, and passages in classes of two sources."""
    records = [
        {"query": "甲问", "positives": ["甲答"], "cluster_ids": [1], "negatives": ["乙类", "无类"]},
        {"query": "乙问", "positives": ["乙答"], "cluster_ids": [2], "negatives": []},
        {"query": "丙问", "positives": ["丙丁答"], "cluster_ids": [3], "negatives": []},
        {"query": "丁问", "positives": ["丁答"], "cluster_ids": [4], "negatives": []},
        {"query": "戊问", "positives": ["戊答"], "cluster_ids": [5], "negatives": []},
    ]
    write.shard(tmp_path, "retrieval", [{"source": "a"} | record for record in records])
    passages = {
        0: ("甲答", 1),
        1: ("乙答", 2),
        2: ("乙类", 2),
        3: ("丙丁答", [3, 4]),
        4: ("丁答", 4),
        5: ("甲戊", [1, 5]),
    }
    passages |= {6: ("戊答", 5)}
    pools = {"甲问": [], "乙问": [], "丙问": [], "丁问": [5], "戊问": []}
    write.mined(tmp_path, passages, pools)
    data = read(tmp_path, "retrieval")
    assert column(data.queries, "clusters") == [[[1]], [[2]], [[3, 4]], [[4]], [[5]]]
    assert column(data.queries, "provided_clusters") == [[[2], []], [], [], [], []]
    assert column(data.passages, "clusters") == [[1], [2], [2], [3, 4], [4], [1, 5], [5]]

    def group(batch: Any, text: str) -> int:
        return int(batch.groups[batch.texts.index(text)])

    begin: Any = start if policy == "v1" else start_negatives
    current = begin(data.pool_sizes, 4, provided_counts(data))
    nothing = np.zeros(0, np.int64)
    batch = finetune_batch(data, current, np.array([0, 1, 2, 3]), nothing, 4, np.zeros(4, np.int64), Prompts())
    assert group(batch, "乙类") == group(batch, "乙答") != group(batch, "甲答")
    assert group(batch, "丙丁答") == group(batch, "丁答")
    assert group(batch, "甲戊") == group(batch, "甲答")
    groups = {text: group(batch, text) for text in ("甲答", "乙答", "丁答", "无类")}
    assert len(set(groups.values())) == 4


@pytest.mark.parametrize("policy", ["v1", "v2"])
def test_provided_negatives_are_cut_to_their_number(tmp_path: Path, write: Any, read: Read, policy: str) -> None:
    record = {"source": "a", "query": "问", "positives": ["答"], "cluster_ids": [9], "negatives": ["一", "二", "三"]}
    write.shard(tmp_path, "retrieval", [record])
    write.mined(tmp_path, {0: ("别的", 3)}, {"问": []})
    data = read(tmp_path, "retrieval")
    begin: Any = start if policy == "v1" else start_negatives
    current = begin(data.pool_sizes, 2, provided_counts(data))
    update = finetune_batch(data, current, np.array([0]), np.zeros(0, np.int64), 2, np.array([0]), Prompts())
    assert [update.texts[row] for row in update.negative_rows[0]] == ["一", "二"]
