"""A judge's scores of the texts of a batch, against a plain dictionary of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from conan_embedding.pipeline.corpus.pools import open_pools
from conan_embedding.schemas.errors import CorpusError
from conan_embedding.schemas.prompts import Prompts
from conan_embedding.trainer.data.batches import finetune_batch
from conan_embedding.trainer.data.teacher_scores import (
    count_scored,
    find_judge,
    fingerprint_scores,
    write_scores,
)
from conan_embedding.trainer.data.training_tables import provided_counts, read_finetune, write_finetune
from conan_embedding.trainer.dhnm.negatives import start_negatives
from conan_embedding.trainer.dhnm.windows import start

Judge = Callable[..., None]


@pytest.mark.parametrize("policy", ["v1", "v2"])
def test_batches_have_the_scores_of_their_texts(
    training_corpus: Path, judge: Judge, tmp_path: Path, shards: Callable[[Path, str], list[Path]], policy: str
) -> None:
    random = np.random.default_rng(3)
    some = [(query, 2 * passage) for query in range(0, 40, 2) for passage in random.permutation(80)[:40].tolist()]
    scores = {pair: float(np.float32(random.normal())) for pair in some}
    judge("cross-encoder-1", *((*pair, score) for pair, score in scores.items()))
    judge("cross-encoder-2", *((query, passage, 9.0) for query, passage in scores))
    judge("cross-encoder-1", (2, 3, float("inf")), (1, 4, float("nan")))  # no scores
    with open_pools(training_corpus) as pools:
        texts = dict(pools.sql("SELECT text, passage_id FROM passages").fetchall())

    folder = tmp_path / "data"
    folder.mkdir()
    write_finetune(folder, training_corpus, {"retrieval": shards(training_corpus, "retrieval")}, [])
    assert read_finetune(folder).scores is None
    write_scores(folder, training_corpus, "cross-encoder-1")
    data = read_finetune(folder)
    assert data.scores is not None and count_scored(data.scores) == 20
    current: Any = start(data.pool_sizes, 4, provided_counts(data))
    if policy == "v2":
        current = start_negatives(data.pool_sizes, 4, provided_counts(data))
    rows = np.array([39, 10, 2, 0, 1, 38, 20, 5, 12])
    found = finetune_batch(data, current, rows, np.arange(0), 4, rows % 2, Prompts(query="q:", passage="p:"))

    known = 0
    for query, row in enumerate(rows.tolist()):
        passages = [found.positive_rows[query], *(each for each in found.negative_rows[query] if each >= 0)]
        ids = [texts.get(found.texts[each].removeprefix("p:"), -1) for each in passages]
        expected = [scores.get((row, passage), np.nan) for passage in ids]
        np.testing.assert_array_equal(found.teacher_scores[query, : len(ids)].numpy(), np.float32(expected))
        assert found.teacher_scores[query, len(ids) :].isnan().all()
        known += int(np.isfinite(expected).sum())
    assert known > 5


def test_the_judge_is_found_by_the_beginning_of_its_name(training_corpus: Path, judge: Judge) -> None:
    with pytest.raises(CorpusError, match=r"no scores to learn; run `conan judge .*` first"):
        find_judge(training_corpus, None)
    judge("bi-encoder-a1", (0, 1, 0.5))
    assert find_judge(training_corpus, None) == "bi-encoder-a1"
    judge("cross-encoder-b2", (0, 1, 3.0))
    judge("cross-encoder-c3", (0, 1, 3.0))
    assert find_judge(training_corpus, "bi") == "bi-encoder-a1"
    everyone = "judged by bi-encoder-a1, cross-encoder-b2, cross-encoder-c3"
    for wanted, message in (
        (None, "expected the judge's name"),
        ("cross", "expected the beginning of one judge's name, found 'cross'"),
        ("person", "expected the beginning of one judge's name, found 'person'"),
    ):
        with pytest.raises(CorpusError, match=f"finetune.distill.judge: {message}; the pools have been {everyone}"):
            find_judge(training_corpus, wanted)


def test_other_scores_have_another_fingerprint(training_corpus: Path, judge: Judge) -> None:
    judge("a", (0, 1, 0.5), (2, 1, 0.5))
    before = fingerprint_scores(training_corpus, "a")
    judge("b", (0, 1, 0.5), (2, 1, 0.5))
    assert fingerprint_scores(training_corpus, "a") == before != fingerprint_scores(training_corpus, "b")
    judge("a", (2, 2, 0.5))
    more = fingerprint_scores(training_corpus, "a")
    with duckdb.connect(str(training_corpus / "pools.duckdb")) as pools:
        pools.execute("UPDATE judgements SET score = 0.75 WHERE passage_id = 2")
    assert len({before, more, fingerprint_scores(training_corpus, "a")}) == 3
