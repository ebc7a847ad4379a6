"""Figures against scikit-learn, SciPy and plain loops; evaluation sets as people write them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from conan_embedding.pipeline.corpus import CorpusError
from conan_embedding.pipeline.encoder import Encoder, load_encoder
from conan_embedding.schemas.settings import EncoderSettings
from conan_embedding.trainer import evaluate as module
from conan_embedding.trainer.evaluate import EvaluationSet, evaluate, read_sets, retrieval_figures
from scipy.stats import spearmanr

NONE = pl.Series([], dtype=pl.String)


def unit(random: np.random.Generator, rows: int) -> Any:
    vectors = random.normal(size=(rows, 6)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(("queries", "passages", "most"), [(40, 60, 4), (3, 30, 25), (5, 4, 2), (1, 1, 1)])
@pytest.mark.parametrize("at_once", [1, 1 << 26])
def test_retrieval_figures_are_scikit_learns(
    monkeypatch: pytest.MonkeyPatch, queries: int, passages: int, most: int, at_once: int
) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    monkeypatch.setattr(module, "_SCORES_AT_ONCE", at_once)
    random = np.random.default_rng(queries)
    asked, searched = unit(random, queries), unit(random, passages)
    counts = [min(most, passages), *random.integers(1, min(most, passages) + 1, queries - 1)]
    answers = [random.choice(passages, count, replace=False) for count in counts]
    owner = np.repeat(np.arange(queries), counts)
    found = retrieval_figures(asked, searched, owner, np.concatenate(answers))

    relevance, scores = np.zeros((queries, passages)), asked @ searched.T
    recalls = []
    for query, wanted in enumerate(answers):
        relevance[query, wanted] = 1
        best = sorted(range(passages), key=lambda passage: -scores[query, passage])[:10]
        recalls.append(len(set(best) & set(wanted.tolist())) / len(wanted))
    if passages > 1:  # scikit-learn has no nDCG of one
        assert found["ndcg@10"] == pytest.approx(metrics.ndcg_score(relevance, scores, k=10))
    assert found["recall@10"] == pytest.approx(np.mean(recalls))


def test_figures_by_hand() -> None:
    """One answer at rank 1, one at rank 3, one beyond rank 10."""
    passages = np.eye(16, dtype=np.float32)[:12]
    query = np.zeros((1, 16), np.float32)
    query[0, :12] = np.arange(12, 0, -1)
    found = retrieval_figures(query, passages, np.array([0, 0, 0]), np.array([0, 2, 11]))
    assert found["ndcg@10"] == pytest.approx((1 + 1 / 2) / (1 + 1 / np.log2(3) + 1 / 2))
    assert found["recall@10"] == pytest.approx(2 / 3)


def test_an_answer_named_twice_counts_once() -> None:
    eye = np.eye(3, dtype=np.float32)
    assert retrieval_figures(eye[:1], eye, np.array([0, 0]), np.array([0, 0])) == {"ndcg@10": 1.0, "recall@10": 1.0}


def by_hand(monkeypatch: pytest.MonkeyPatch, vectors: dict[str, list[float]]) -> Encoder:
    """An encoder that looks its vectors up; without a prompt."""

    def encode(_: Any, texts: Any, prompt: str = "") -> Any:
        found = np.array([vectors[prompt + text] for text in texts.to_pylist()], np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    monkeypatch.setattr(module, "encode", encode)
    return SimpleNamespace(query_prompt="")  # type: ignore[return-value]


def test_spearman_is_scipys(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    texts = [f"t{i}" for i in range(60)]
    vectors = dict(zip(texts, random.normal(size=(60, 5)).tolist(), strict=True))
    labels = random.integers(0, 6, 30) / 5
    frame = pl.DataFrame({"text_a": texts[:30], "text_b": texts[30:], "label": labels})
    found = evaluate(by_hand(monkeypatch, vectors), EvaluationSet("sts", "sts", frame, NONE))

    def cosine(one: list[float], other: list[float]) -> float:
        return float(np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other))

    scores = [cosine(vectors[a], vectors[b]) for a, b in zip(texts[:30], texts[30:], strict=True)]
    assert found == {"spearman": pytest.approx(spearmanr(scores, labels).statistic)}


def test_other_queries_answers_and_further_passages_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = {"q": [1.0, 0], "r": [0, 1.0], "a": [1, 0.1], "b": [1, 0.3], "c": [0.1, 1], "near q": [1, 0.01]}
    encoder = by_hand(monkeypatch, vectors)
    frame = pl.DataFrame({"query": ["q", "r"], "positives": [["a", "b"], ["c"]]})
    alone = evaluate(encoder, EvaluationSet("s", "retrieval", frame, NONE))
    assert alone == {"ndcg@10": 1.0, "recall@10": 1.0}
    among = evaluate(encoder, EvaluationSet("s", "retrieval", frame, pl.Series(["near q", "a"])))
    of_q = (1 / np.log2(3) + 1 / 2) / (1 + 1 / np.log2(3))
    assert among["ndcg@10"] == pytest.approx((of_q + 1) / 2)


PAIRS = pl.DataFrame(
    {
        "source": ["qa", "qa", "qa", "qa", "pairs", "pairs", "pre"],
        "task": ["retrieval"] * 4 + ["sts"] * 2 + ["pretrain"],
        "query": ["问", "问", "", "又问", "甲", "乙", "题"],
        "positive": ["答", "另答", "只供检索", "又答", "丙", "丁", "文"],
        "negatives": [["错"], [], [], [], [], [], []],
        "label": [None, None, None, None, 0.2, 1.0, None],
        "meta": ["{}", "{}", '{"passage_only":true}', "{}", "{}", "{}", "{}"],
    }
)


def as_dict(one: EvaluationSet) -> tuple[str, str, list[Any], list[str]]:
    return one.name, one.task, one.frame.rows(), one.passages.to_list()


def test_pairs_as_ingest_writes_them_are_a_set_a_source(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    named = PAIRS.with_columns(pl.col("source", "task").cast(pl.Categorical))
    named.filter(pl.col("source") != "pre").write_parquet(folder / "part-00000.parquet")
    PAIRS.filter(pl.col("source") == "pre").drop("negatives", "meta", "label").write_ndjson(folder / "own.jsonl")
    (folder / "notes.txt").write_text("not a set")
    found = sorted((as_dict(one) for one in read_sets([folder])), key=lambda one: one[0])
    assert found == [
        ("pairs", "sts", [("甲", "丙", pytest.approx(0.2)), ("乙", "丁", 1.0)], []),
        ("pre", "retrieval", [("题", ["文"])], ["文"]),
        ("qa", "retrieval", [("问", ["答", "另答"]), ("又问", ["又答"])], ["答", "另答", "只供检索", "又答", "错"]),
    ]


def test_records_are_sets_too(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text(
        '{"query": "问", "positives": ["答"], "negatives": ["错"]}\n'
        '{"query": "没有答案", "positives": [], "negatives": []}\n'
        '{"query": "又问", "positives": ["又答", null], "negatives": ["错"]}\n'
    )
    pl.DataFrame({"text_a": ["甲", "乙", "己"], "text_b": ["丙", None, "庚"], "label": [0, 1, 3]}).write_parquet(
        tmp_path / "sts.parquet"
    )
    retrieval, sts = read_sets([tmp_path / "own.jsonl", tmp_path / "sts.parquet"])
    assert as_dict(retrieval) == ("own", "retrieval", [("问", ["答"]), ("又问", ["又答"])], ["错", "错"])
    assert as_dict(sts) == ("sts", "sts", [("甲", "丙", 0), ("己", "庚", 3)], [])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"question": "问", "answer": "答"}', "expected the columns .* found question, answer"),
        ("a.jsonl", '{"query": "问", "positives": "答"}', "can't be read"),
        ("a.jsonl", "{broken", "can't be read"),
        ("a.jsonl", "", "can't be read"),
        ("a.parquet", "no Parquet", "can't be read"),
        ("a.jsonl", '{"query": "问", "positives": []}', "nothing to ask: a"),
        ("a.jsonl", '{"query": "", "positive": "p", "source": "s", "task": "retrieval"}', "nothing to ask: s"),
    ],
)
def test_what_is_no_set_is_said(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CorpusError, match=message):
        read_sets([tmp_path / name])


def test_places_without_sets_are_said(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no evaluation sets in .*missing\.jsonl"):
        read_sets([tmp_path / "missing.jsonl"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"no evaluation sets in .*empty"):
        read_sets([tmp_path / "empty"])


def test_a_model_finds_a_text_itself(tiny: Path) -> None:
    encoder = load_encoder(EncoderSettings(model=str(tiny)))
    texts = [chr(point) * 3 for point in range(0x4E00, 0x4E10)]
    frame = pl.DataFrame({"query": texts, "positives": [[text] for text in texts]})
    assert evaluate(encoder, EvaluationSet("same", "retrieval", frame, NONE))["ndcg@10"] == pytest.approx(1)


def test_queries_have_the_models_prompt_and_passages_none(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = {"问：q": [1.0, 0], "问：r": [0, 1.0], "a": [1, 0.1], "c": [0.1, 1]}
    encoder = by_hand(monkeypatch, vectors)
    encoder.query_prompt = "问："
    frame = pl.DataFrame({"query": ["q", "r"], "positives": [["a"], ["c"]]})
    assert evaluate(encoder, EvaluationSet("s", "retrieval", frame, NONE)) == {"ndcg@10": 1.0, "recall@10": 1.0}
