"""conan mine --show against verdicts that follow from hand-made vectors."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conan_embedding.pipeline.corpus.pools import open_pools, write_decisions
from conan_embedding.pipeline.encoder.encoder import Encoder
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.mine.show_pool import show_pool
from conan_embedding.pipeline.mine.stage import mine
from conan_embedding.schemas.errors import CorpusError
from conan_embedding.schemas.settings import MineSettings

# The cosine of each passage and the query 问, whose positives are 答 and 又答.
COSINES = {"答": 0.9, "又答": 0.8, "似答": 0.95, "近一": 0.85, "近二": 0.78, "远一": 0.7, "远二": 0.6, "远三": 0.5}
RANKED = sorted(COSINES, key=lambda text: -COSINES[text])
CLUSTERS = {"答": [1], "又答": [2], "似答": [7, 1]} | {text: [20 + i] for i, text in enumerate(list(COSINES)[3:])}

ALL = "cluster positive above positive above kept0 kept1 kept2"


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(encoder: Encoder, texts: list[str] | pa.Array, prompt: str = "") -> np.ndarray:
        cosines = np.array([COSINES.get(str(text), 1.0) for text in texts], np.float32)
        return np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)

    monkeypatch.setattr("conan_embedding.pipeline.encoder.encoder.encode", encode)
    monkeypatch.setattr("conan_embedding.pipeline.encoder.encoder.dimension", lambda encoder: 2)


@pytest.fixture
def converted_corpus(tmp_path: Path, write_shards) -> Path:
    origin = {"source": "exam", "category": "web_page", "negatives": []}
    asked = {"pair_ids": ["0", "1"], "query": "问", "positives": ["答", "又答"], "cluster_ids": [1, 2]}
    others = [
        {"pair_ids": [text], "query": f"另问{text}", "positives": [text], "cluster_ids": [cluster]}
        for text, clusters in CLUSTERS.items()
        for cluster in clusters
    ]
    write_shards(tmp_path / "corpus", "convert/retrieval", [origin | row for row in [asked, *others]])
    return tmp_path / "corpus"


def settings(model: Path, **more) -> MineSettings:
    return MineSettings(model=str(model), max_length=32, **{"top_k": 7} | more)


@pytest.mark.parametrize("is_cached", [True, False])
@pytest.mark.parametrize(
    ("options", "ceiling", "verdicts"),
    [
        ({"method": "topk", "top_k": 2}, None, "cluster positive kept0 - kept1"),
        ({"method": "topk", "top_k": 9}, None, "cluster positive kept0 positive kept1 kept2 kept3 kept4"),
        ({"method": "topk-shifted", "margin": 1, "top_k": 3}, None, "cluster positive shifted - kept0 kept1 kept2"),
        ({"method": "topk-shifted", "top_k": 5}, None, "cluster positive shifted positive shifted"),
        ({"method": "topk-abs", "margin": 0.72, "top_k": 1}, "above ceiling 0.72 (topk-abs)", "cluster - - - - kept0"),
        ({"method": "topk-marginpos"}, "above ceiling 0.75 (topk-marginpos 0.80 - 0.05)", ALL),
        ({"method": "topk-percpos"}, "above ceiling 0.76 (topk-percpos 0.95 × 0.80)", ALL),
    ],
)
def test_every_rule(
    options: dict[str, Any], ceiling: str | None, verdicts: str, is_cached: bool, converted_corpus: Path, bge: Path
) -> None:
    """A dash marks a passage that is not listed: neither a candidate nor among the best `top_k`."""
    mined = settings(bge, **options)
    mine(converted_corpus, mined, Engine(workers=1))
    if not is_cached:
        shutil.rmtree(converted_corpus / "vectors")
    before = sorted((file, file.stat().st_mtime_ns) for file in converted_corpus.rglob("*"))
    shown = show_pool(converted_corpus, "问", mined)
    assert sorted((file, file.stat().st_mtime_ns) for file in converted_corpus.rglob("*")) == before
    names = {"positive": "own positive", "cluster": "cluster of a positive", "above": ceiling, "shifted": "shifted"}
    expected = [
        (place, text, "kept" if "kept" in word else names[word], int(word[4:]) if "kept" in word else None)
        for place, (text, word) in enumerate(zip(RANKED, verdicts.split(), strict=False))
        if word != "-"
    ]
    assert [(row["place"], row["text"], row["verdict"], row["rank"]) for row in shown.passages] == expected
    assert [row["score"] for row in shown.passages] == pytest.approx([COSINES[row["text"]] for row in shown.passages])
    assert [(row["text"], round(row["score"], 4)) for row in shown.positives] == [("答", 0.9), ("又答", 0.8)]
    assert (shown.query, shown.run["method"]) == ("问", mined.method)
    assert shown.ceiling == (None if ceiling is None else pytest.approx(float(ceiling.split()[2]), abs=1e-6))


def test_dropped_counts_what_is_not_listed(converted_corpus: Path, bge: Path) -> None:
    mined = settings(bge, method="topk-abs", margin=0.72, top_k=1)
    mine(converted_corpus, mined, Engine(workers=1))
    expected = {"own positive": 2, "above ceiling 0.72 (topk-abs)": 2, "cluster of a positive": 1}
    assert show_pool(converted_corpus, "问", mined).dropped == expected


def test_an_index_may_miss_a_passage(converted_corpus: Path, bge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conan_embedding.pipeline.mine.search.RECALL", 0.0)
    mined = settings(bge, method="topk", index="IVF2,Flat")
    mine(converted_corpus, mined, Engine(workers=1))
    verdicts = {row["text"]: row["verdict"] for row in show_pool(converted_corpus, "问", mined).passages}
    assert {verdicts.pop(text) for text in ("答", "又答")} == {"own positive"}
    assert verdicts.pop("似答") == "cluster of a positive"
    assert set(verdicts.values()) == {"kept", "missed by the search"}


def test_a_query_by_id_text_or_part(converted_corpus: Path, bge: Path) -> None:
    mined = settings(bge, method="topk")
    mine(converted_corpus, mined, Engine(workers=1))
    for wanted in ("问", "另问答", "另问近一", "近一"):
        shown = show_pool(converted_corpus, wanted, mined)
        assert shown.query == {"近一": "另问近一"}.get(wanted, wanted)
        assert show_pool(converted_corpus, str(shown.query_id), mined) == shown
    with pytest.raises(CorpusError, match="several queries contain '另'") as error:
        show_pool(converted_corpus, "另", mined)
    assert len(str(error.value).splitlines()) == 6
    with pytest.raises(CorpusError, match="no query has the id '不在' or contains it"):
        show_pool(converted_corpus, "不在", mined)


def test_what_can_not_be_shown_is_said(converted_corpus: Path, bge: Path) -> None:
    mined = settings(bge, method="topk")
    with pytest.raises(CorpusError, match="conan mine"):
        show_pool(converted_corpus, "问", mined)
    mine(converted_corpus, mined, Engine(workers=1))
    shutil.rmtree(converted_corpus / "vectors")
    with pytest.raises(CorpusError, match="with another model than the recipe's"):
        show_pool(converted_corpus, "问", mined.model_copy(update={"max_length": 16}))
    with open_pools(converted_corpus, read_only=False) as pools:
        pools.execute("DROP TABLE decisions")
    with pytest.raises(CorpusError, match=r"is of an earlier version; run `conan mine"):
        show_pool(converted_corpus, "问", mined)


def test_the_own_text_and_its_cluster(converted_corpus: Path, bge: Path, write_shards) -> None:
    origin = {"source": "exam", "category": "web_page"}
    own = [("问？", 50), ("似问", 50), ("无关", 51)]
    rows = [origin | {"pair_ids": [text], "text": text, "cluster_id": cluster} for text, cluster in own]
    write_shards(converted_corpus, "convert/passages", rows)
    mined = settings(bge, method="topk", top_k=12)
    mine(converted_corpus, mined, Engine(workers=1))
    verdicts = {row["text"]: row["verdict"] for row in show_pool(converted_corpus, "问", mined).passages}
    assert [verdicts[text] for text, _ in own] == ["own text", "cluster of the own text", "kept"]


def test_what_a_judge_decided(converted_corpus: Path, bge: Path) -> None:
    mined = settings(bge, method="topk", top_k=12)
    mine(converted_corpus, mined, Engine(workers=1))
    before = show_pool(converted_corpus, "问", mined)
    first, second, *others = [row for row in before.passages if row["verdict"] == "kept"]
    rows = [
        {"query_id": before.query_id, "passage_id": row["passage_id"], "decision": decision, "judge": "j", "score": 0.5}
        for row, decision in ((first, "ambiguous"), (before.positives[0], "irrelevant"))
    ]
    write_decisions(converted_corpus, pa.Table.from_pylist(rows), "{}")
    after = show_pool(converted_corpus, "问", mined)
    verdicts = {row["passage_id"]: (row["verdict"], row["rank"]) for row in after.passages}
    assert verdicts[first["passage_id"]] == ("judged ambiguous", None)
    assert verdicts[before.positives[0]["passage_id"]] == ("judged irrelevant", None)
    assert (after.ceiling, after.positives) == (before.ceiling, before.positives)
    others_left = {row["passage_id"]: row["rank"] for row in [second, *others]}
    kept = {passage: rank for passage, (verdict, rank) in verdicts.items() if verdict == "kept"}
    assert kept == {passage: rank - 1 for passage, rank in others_left.items()}
    bad = [rows[1] | {"passage_id": row["passage_id"]} for row in before.positives]
    write_decisions(converted_corpus, pa.Table.from_pylist([rows[0], *bad]), "{}")
    aside = {row["passage_id"]: row["verdict"] for row in show_pool(converted_corpus, "问", mined).passages}
    assert aside[first["passage_id"]] == "judged ambiguous"
    assert {aside[row["passage_id"]] for row in (second, *others)} == {"set aside with the query"}
    mine(converted_corpus, mined, Engine(workers=1))  # leaves the pools as mined
    assert show_pool(converted_corpus, "问", mined) == before
