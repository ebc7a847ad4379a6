"""Metrics against scikit-learn, SciPy and plain loops."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from conan_embedding.pipeline.encoder.encoder import Encoder, load_encoder
from conan_embedding.pipeline.encoder.quantization import cut
from conan_embedding.schemas.errors import CorpusError
from conan_embedding.schemas.prompts import Prompts
from conan_embedding.schemas.results import RESULT
from conan_embedding.schemas.settings import EncoderSettings, SourcePrompts
from conan_embedding.trainer.evaluation import evaluate as module
from conan_embedding.trainer.evaluation.evaluate import evaluate, judge, judge_bm25, widths, write_results
from conan_embedding.trainer.evaluation.evaluation_sets import EvaluationSet
from scipy.stats import spearmanr


def retrieval(queries: dict[str, list[str]], negatives: list[list[str]] | None = None, *more: str) -> EvaluationSet:
    frame = pl.DataFrame(
        {
            "query_id": [f"id {query}" for query in queries],
            "query": list(queries),
            "positives": list(queries.values()),
            "negatives": negatives or [[] for _ in queries],
        },
        schema_overrides={"negatives": pl.List(pl.String)},
    )
    return EvaluationSet("s", "retrieval", frame, pl.Series(more, dtype=pl.String))


def by_hand(monkeypatch: pytest.MonkeyPatch, vectors: dict[str, Any], prompt: str = "") -> Encoder:
    """Make a fake encoder that looks up its vectors."""

    def encode(_: Any, texts: Any, prompt: str = "") -> Any:
        found = np.array([vectors[prompt + text] for text in texts.to_pylist()], np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    monkeypatch.setattr(module, "encode", encode)
    width = len(next(iter(vectors.values())))
    layout = SimpleNamespace(dense=[SimpleNamespace(weight=[0] * width)])
    return SimpleNamespace(prompts=Prompts(prompt), layout=layout)  # type: ignore[return-value]


def test_a_set_has_its_own_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "Instruct: Find it\nQuery: "
    vectors = {f"{asked}q": [1, 0], f"{asked}r": [0, 1], "own:甲": [1, 0.1], "own:乙": [0.1, 1]}
    encoder = by_hand(monkeypatch, vectors, "model's:")
    own = SourcePrompts(instruction="Find it", passage="own:")
    assert evaluate(encoder, replace(retrieval({"q": ["甲"], "r": ["乙"]}), prompts=own))["ndcg@10"] == 1
    pairs = pl.DataFrame({"query_id": ["1", "2"], "text_a": ["q", "q"], "text_b": ["q", "r"], "label": [1.0, 0.0]})
    alike = EvaluationSet("pairs", "sts", pairs, prompts=SourcePrompts(instruction="Find it"))
    assert judge(encoder, alike, [2])[0].results["score"].to_list() == [1, 0]


@pytest.mark.parametrize(("queries", "passages", "most"), [(40, 160, 4), (3, 30, 25), (5, 4, 2), (1, 1, 1)])
@pytest.mark.parametrize("at_once", [1, 1 << 24])
def test_retrieval_metrics_are_scikit_learns(
    monkeypatch: pytest.MonkeyPatch, queries: int, passages: int, most: int, at_once: int
) -> None:
    from sklearn.metrics import ndcg_score

    monkeypatch.setattr(module, "_SCORES_AT_ONCE", at_once)
    random = np.random.default_rng(queries)
    texts = [f"p{place}" for place in range(passages)]
    vectors = {text: random.normal(size=6) for text in [*texts, *(f"q{i}" for i in range(queries))]}
    counts = [min(most, passages), *random.integers(1, min(most, passages) + 1, queries - 1)]
    answers = [random.choice(passages, count, replace=False) for count in counts]
    asked = {f"q{i}": [texts[place] for place in wanted] for i, wanted in enumerate(answers)}
    found = evaluate(by_hand(monkeypatch, vectors), retrieval(asked, None, *texts))

    unit = {text: vector / np.linalg.norm(vector) for text, vector in vectors.items()}
    scores = np.array([[unit[query] @ unit[text] for text in texts] for query in asked])
    relevance = np.zeros((queries, passages))
    recalls: dict[int, list[float]] = {10: [], 100: []}
    reciprocal = []
    for query, wanted in enumerate(answers):
        relevance[query, wanted] = 1
        order = sorted(range(passages), key=lambda passage: -scores[query, passage])
        for depth, values in recalls.items():
            values.append(len(set(order[:depth]) & set(wanted.tolist())) / len(wanted))
        first = min(order.index(place) for place in wanted) + 1
        reciprocal.append(1 / first if first <= 10 else 0)
    if passages > 1:  # scikit-learn has no nDCG of a single passage
        assert found["ndcg@10"] == pytest.approx(ndcg_score(relevance, scores, k=10))
    assert found["recall@10"] == pytest.approx(np.mean(recalls[10]))
    assert found["recall@100"] == pytest.approx(np.mean(recalls[100]))
    assert found["mrr@10"] == pytest.approx(np.mean(reciprocal))
    assert "map" not in found


def test_metrics_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """One positive at rank 1, one at rank 3, one beyond rank 10."""
    vectors = {f"p{place}": np.eye(16)[place] for place in range(12)} | {"q": np.r_[np.arange(12, 0, -1), np.zeros(4)]}
    asked = retrieval({"q": ["p0", "p2", "p11"]}, None, *vectors.keys() - {"q"})
    (judged,) = judge(by_hand(monkeypatch, vectors), asked, [16])
    assert judged.metrics["ndcg@10"] == pytest.approx((1 + 1 / 2) / (1 + 1 / np.log2(3) + 1 / 2))
    assert judged.metrics["recall@10"] == pytest.approx(2 / 3)
    row = judged.results.row(0, named=True)
    assert row.pop("passages") == [f"p{place}" for place in range(10)]
    assert row == {
        "query_id": "id q", "query": "q", "rank": 1, "mrr_10": 1.0, "recall_100": 1.0,
        "ndcg_10": pytest.approx(judged.metrics["ndcg@10"]), "recall_10": pytest.approx(2 / 3),
    }  # fmt: skip


def test_an_answer_named_twice_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = by_hand(monkeypatch, {"q": [1, 0.0], "a": [1, 0.1], "b": [0.0, 1]})
    found = evaluate(encoder, retrieval({"q": ["a", "a"]}, None, "b"))
    assert found == {"ndcg@10": 1, "mrr@10": 1, "recall@10": 1, "recall@100": 1}


def test_reranking_is_among_a_querys_own_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = {"q": [1.0, 0], "r": [0, 1.0], "s": [1, 1.0], "a": [1, 0.5], "n": [1, 0.1], "m": [0, 1.0], "near": [1, 0]}
    asked = retrieval({"q": ["a"], "r": ["m"], "s": ["a"]}, [["n", "m"], [], ["n", "m", "a"]], "near")
    (judged,) = judge(by_hand(monkeypatch, vectors), asked, [2])
    # n is nearer to q than a is. r has no negatives. a, in both lists of s, counts as a positive, and is the nearest.
    assert judged.results["map"].to_list() == [0.5, pytest.approx(np.nan, nan_ok=True), 1]
    assert judged.metrics["map"] == 0.75


def test_other_queries_answers_and_further_passages_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = {"q": [1.0, 0], "r": [0, 1.0], "a": [1, 0.1], "b": [1, 0.3], "c": [0.1, 1], "near q": [1, 0.01]}
    encoder = by_hand(monkeypatch, vectors)
    asked = {"q": ["a", "b"], "r": ["c"]}
    assert evaluate(encoder, retrieval(asked))["ndcg@10"] == 1
    of_q = (1 / np.log2(3) + 1 / 2) / (1 + 1 / np.log2(3))
    assert evaluate(encoder, retrieval(asked, None, "near q", "a"))["ndcg@10"] == pytest.approx((of_q + 1) / 2)


def pairs(count: int, labels: Any) -> EvaluationSet:
    texts = {side: [f"{side}{i}" for i in range(count)] for side in ("a", "b")}
    frame = pl.DataFrame({"text_a": texts["a"], "text_b": texts["b"], "label": labels}).with_row_index("query_id")
    return EvaluationSet("sts", "sts", frame.with_columns(pl.col("query_id").cast(pl.String)))


@pytest.mark.parametrize("binary", [True, False])
def test_sentence_pairs_have_spearman_and_with_labels_0_and_1_more(
    monkeypatch: pytest.MonkeyPatch, binary: bool
) -> None:
    from sklearn.metrics import average_precision_score

    random = np.random.default_rng(2)
    vectors = {f"{side}{i}": random.normal(size=5) for i in range(30) for side in "ab"}
    labels = random.integers(0, 2, 30) if binary else random.integers(0, 6, 30) / 5
    (judged,) = judge(by_hand(monkeypatch, vectors), pairs(30, labels), [5])

    def cosine(one: Any, other: Any) -> float:
        return float(np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other))

    scores = [cosine(vectors[f"a{i}"], vectors[f"b{i}"]) for i in range(30)]
    wanted = {"spearman": spearmanr(scores, labels).statistic}
    if binary:
        middles = [-2, *((x + y) / 2 for x, y in zip(sorted(scores), sorted(scores)[1:], strict=False))][1:]
        wanted["ap"] = average_precision_score(labels, scores)
        wanted["best_accuracy"] = max(np.mean((np.array(scores) > middle) == labels) for middle in middles)
    assert judged.metrics == pytest.approx(wanted)
    assert judged.results["score"].to_list() == pytest.approx(scores, abs=1e-6)


def test_equal_scores_or_labels_have_no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    same, others = np.ones(5), [random.normal(size=5) for _ in range(6)]
    alike = by_hand(monkeypatch, {f"{side}{i}": same for i in range(3) for side in "ab"})
    assert judge(alike, pairs(3, np.array([0.1, 0.5, 0.9])), [5])[0].metrics == {"spearman": 0.0}
    apart = by_hand(monkeypatch, {f"{side}{i}": others[2 * i + (side == "b")] for i in range(3) for side in "ab"})
    assert judge(apart, pairs(3, np.full(3, 0.5)), [5])[0].metrics == {"spearman": 0.0}


def test_classes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    texts = [f"t{i}" for i in range(60)]
    vectors = {text: np.eye(4)[i % 3] + random.normal(size=4) / 10 for i, text in enumerate(texts)}
    frame = pl.DataFrame({"query_id": texts, "text": texts, "class": list("甲乙丙") * 20, "learnt": [False] * 60})
    encoder = by_hand(monkeypatch, vectors)
    alone = judge(encoder, EvaluationSet("c", "classification", frame), [4])[0]
    assert alone.metrics == {"accuracy": 1.0, "v_measure": pytest.approx(1)}
    assert alone.results["accuracy"].to_list() == [1.0] * 60
    split = frame.with_columns(learnt=pl.int_range(pl.len()) < 20)
    learnt = judge(encoder, EvaluationSet("c", "classification", split), [4])[0]
    assert learnt.metrics["accuracy"] == 1
    assert learnt.results["query"].to_list() == texts[20:]


def test_vectors_are_cut_and_unit_again(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = {"q": [1.0, 0, 9], "a": [2, 0, -9.0], "b": [1, 1, 9.0]}
    encoder = by_hand(monkeypatch, vectors)
    whole, short = judge(encoder, retrieval({"q": ["a"]}, None, "b"), [3, 2])
    assert (whole.dimension, whole.metrics["mrr@10"]) == (3, 0.5)
    assert (short.dimension, short.metrics["mrr@10"]) == (2, 1.0)
    both = cut(np.array([[3, 4, 12.0], [0, 0, 1.0]], np.float32), 2)
    assert both == pytest.approx(np.array([[0.6, 0.8], [0, 0]]))
    assert widths(encoder, []) == [3]
    assert widths(encoder, [1, 3, 2, 1]) == [3, 1, 2]
    with pytest.raises(CorpusError, match="3 dimensions and can't be truncated to 4"):
        widths(encoder, [2, 4])


@pytest.fixture
def spread(monkeypatch: pytest.MonkeyPatch) -> tuple[Encoder, EvaluationSet, Any, Any]:
    """Twelve questions among 120 passages, and the unit vectors of both."""
    random = np.random.default_rng(5)
    texts = [f"p{place}" for place in range(120)]
    vectors = dict(zip(texts, random.normal(size=(120, 8192)), strict=True))
    asked = {f"q{i}": texts[10 * i : 10 * i + 10] for i in range(12)}
    for query, answers in asked.items():
        vectors[query] = 0.02 * sum(vectors[text] for text in answers) + random.normal(size=8192)
    encoder = by_hand(monkeypatch, vectors)
    unit = {text: np.float32(vector) / np.linalg.norm(np.float32(vector)) for text, vector in vectors.items()}
    one = retrieval(asked, None, *texts)
    return encoder, one, np.stack([unit[query] for query in asked]), np.stack([unit[text] for text in texts])


def test_a_binary_index_finds_what_sentence_transformers_finds(
    spread: tuple[Encoder, EvaluationSet, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers.util.quantization import quantize_embeddings, semantic_search_faiss

    monkeypatch.setattr(module, "DEPTH", 25)
    encoder, one, queries, passages = spread
    full, binary = judge(encoder, one, [8192], ["binary"])
    assert (full.precision, full.bytes_per_vector, binary.precision, binary.bytes_per_vector) == (
        "float32", 32768, "binary", 1024,
    )  # fmt: skip
    bits = quantize_embeddings(passages, "ubinary")
    distances = np.sort(np.bitwise_count(np.packbits(queries > 0, axis=1)[:, None] ^ bits).sum(axis=2), axis=1)
    compared = [i for i in range(12) if distances[i, 39] < distances[i, 40]]  # else, any of the tied may be a candidate
    assert len(compared) > 5
    found, *_ = semantic_search_faiss(queries, bits, corpus_precision="ubinary", rescore_multiplier=4)
    for i in compared:
        assert binary.results["passages"][i].to_list() == [f"p{each['corpus_id']}" for each in found[i]]
    assert binary.results["passages"].to_list() != full.results["passages"].to_list()
    found, *_ = semantic_search_faiss(queries, bits, corpus_precision="ubinary", top_k=25, rescore_multiplier=4)
    for i in (i for i in range(12) if distances[i, 99] < distances[i, 100]):
        within = {each["corpus_id"] for each in found[i]} & set(range(10 * i, 10 * i + 10))
        assert binary.results["recall_100"][i] == pytest.approx(len(within) / 10)


def test_an_int8_index_scores_the_restored_vectors(spread: tuple[Encoder, EvaluationSet, Any, Any]) -> None:
    from sentence_transformers.util.quantization import _dequantize_embeddings, quantize_embeddings

    encoder, one, queries, passages = spread
    stored = [
        (each.dimension, each.precision, each.bytes_per_vector) for each in judge(encoder, one, [16, 8], ["int8"])
    ]
    assert stored == [(16, "float32", 64), (16, "int8", 16), (8, "float32", 32), (8, "int8", 8)]
    int8 = judge(encoder, one, [8], ["int8", "int8"])[1]
    queries, passages = cut(queries, 8), cut(passages, 8)
    ranges = np.stack([passages.min(axis=0), passages.max(axis=0)])
    restored = _dequantize_embeddings(quantize_embeddings(passages, "int8", ranges), "int8", ranges)
    best = np.argsort(-(queries @ restored.T), axis=1)[:, :10]
    assert int8.results["passages"].to_list() == [[f"p{place}" for place in row] for row in best]


def test_bm25_finds_words_in_common() -> None:
    asked = retrieval({"红楼梦作者": ["红楼梦的作者是曹雪芹"], "iPhone": ["iphone 是手机"]}, None, "作者")
    judged = judge_bm25(asked)
    assert judged.metrics["mrr@10"] == 1
    assert judged.dimension is None


def test_a_model_finds_a_text_itself(tiny: Path) -> None:
    encoder = load_encoder(EncoderSettings(model=str(tiny)))
    texts = [chr(point) * 3 for point in range(0x4E00, 0x4E10)]
    assert evaluate(encoder, retrieval({text: [text] for text in texts}))["ndcg@10"] == pytest.approx(1)


def test_queries_have_the_models_prompt_and_passages_none(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = {"问：q": [1.0, 0], "问：r": [0, 1.0], "a": [1, 0.1], "c": [0.1, 1]}
    assert evaluate(by_hand(monkeypatch, vectors, "问："), retrieval({"q": ["a"], "r": ["c"]}))["ndcg@10"] == 1


def test_results_of_all_tasks_are_one_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    encoder = by_hand(monkeypatch, {text: [1.0, place] for place, text in enumerate(["q", "a", "n", "a0", "b0"])})
    judged = judge(encoder, retrieval({"q": ["a"]}, [["n"]]), [1, 2]) + judge(encoder, pairs(1, [1.0]), [2])
    file = write_results(tmp_path / "results", "BAAI/bge: small", judged)
    assert file == tmp_path / "results" / "BAAI_bge_small.parquet"
    assert pl.read_parquet(file).columns == RESULT.names
    rows = duckdb.sql(f"SELECT dimension, set, rank, passages[1], label, map FROM '{file}' ORDER BY ALL").fetchall()
    assert rows == [(1, "s", 1, "a", None, 0.5), (2, "s", 1, "a", None, 1.0), (2, "sts", None, None, 1.0, None)]
