"""A corpus in the state after convert and mine, small enough to train on in a second."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from conan_embedding.pipeline.corpus.folder import fingerprint
from conan_embedding.pipeline.corpus.pools import write_pools
from conan_embedding.pipeline.corpus.shard_writer import ShardWriter
from conan_embedding.pipeline.mine.methods import ceiling_sql
from conan_embedding.schemas.pairs import SCORED, rejected
from conan_embedding.schemas.training import TRAINING
from conan_embedding.schemas.training_settings import PretrainSettings
from conan_embedding.trainer.job import Job
from training_runs import Runs

CHARACTERS = [chr(point) for point in range(0x4E00, 0x4E00 + 150)]

Row = dict[str, Any]

JUDGEMENTS = (
    "CREATE TABLE IF NOT EXISTS judgements "
    "(query_id BIGINT, passage_id BIGINT, judge VARCHAR, score FLOAT, verdict VARCHAR, created_at TIMESTAMP)"
)


def sentences(count: int, seed: int) -> list[str]:
    """Generate random texts of 3 to 24 Han characters, all different."""
    random = np.random.default_rng(seed)
    texts = ("".join(random.choice(CHARACTERS, random.integers(3, 25))) for _ in iter(int, 1))
    found: dict[str, None] = {}
    while len(found) < count:
        found[next(texts)] = None
    return list(found)


def write_shard(corpus: Path, kind: str, rows: list[Row], number: int = 0) -> Path:
    """Write a shard of convert; columns that no test looks at are filled in."""
    path = corpus / "convert" / kind / f"part-{number:05d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    filled = [{"category": "news", "pair_ids": [f"{kind}-{number}-{i}"]} | row for i, row in enumerate(rows)]
    with ShardWriter(
        path, TRAINING[kind], rejected(SCORED), stage="convert", version=1, fingerprint=fingerprint(filled)
    ) as writer:
        writer.received(len(rows))
        writer.keep(pa.Table.from_pylist(filled, TRAINING[kind]))
    return path


def write_lines(file: Path, rows: list[Row]) -> None:
    """Write rows as JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def write_mined(corpus: Path, passages: Mapping[int, tuple[str, int | list[int]]], pools: dict[str, list[int]]) -> None:
    """Write pools.duckdb: passages by id with their clusters, and the pool of each query, best first."""
    ids = list(range(len(pools)))
    every = [[clusters] if isinstance(clusters, int) else sorted(clusters) for _, clusters in passages.values()]
    run = {
        "run_id": "r",
        "model_fingerprint": "m",
        "method": "topk",
        "margin": 1.0,
        "top_k": 100,
        "fingerprint": fingerprint(str(passages), pools),
        "created_at": np.datetime64("2025-01-01", "us"),
    }
    tables = {
        "runs": pa.table({name: pa.array([value]) for name, value in run.items()}),
        "passages": pa.table(
            {
                "passage_id": pa.array(passages.keys(), pa.int64()),
                "text": pa.array([text for text, _ in passages.values()], pa.string()),
                "cluster_id": pa.array([clusters[0] for clusters in every], pa.int64()),
                "cluster_ids": pa.array(every, pa.list_(pa.int64())),
            }
        ),
        "queries": pa.table({"query_id": pa.array(ids, pa.int64()), "text": pa.array(pools.keys(), pa.string())}),
        "positives": pa.table(
            {"query_id": pa.array([], pa.int64()), "passage_id": pa.array([], pa.int64()), "score": pa.array([], "f4")}
        ),
        "candidates": pa.table(
            {
                "query_id": pa.array(ids, pa.int64()),
                "run_id": pa.array(["r"] * len(ids), pa.string()),
                "passage_ids": pa.array(pools.values(), pa.list_(pa.int64())),
                "scores": pa.array([[0.5] * len(pool) for pool in pools.values()], pa.list_(pa.float32())),
            }
        ),
    }
    write_pools(corpus, tables, ceiling_sql())


def make_corpus(corpus: Path) -> None:
    """Write 40 queries of two sources with pools of 0 to 39 candidates, 40 pairs, and 30 sentence pairs."""
    random = np.random.default_rng(5)
    texts = sentences(200, seed=1)
    queries, positives, others = texts[:40], texts[40:100], texts[100:]
    passages = {number: (text, number) for number, text in enumerate([*positives, *others])}
    retrieval = [
        {
            "source": "big" if i < 30 else "small",
            "query": query,
            "positives": positives[i : i + 1] + (positives[40 + i : 41 + i] if i < 20 else []),
            "cluster_ids": [i, 40 + i] if i < 20 else [i],
            "negatives": others[i : i + 2] if i % 5 == 0 else [],
        }
        for i, query in enumerate(queries)
    ]
    pools = {
        query: [60 + int(one) for one in random.permutation(100)[:size]]
        for query, size in zip(queries, [*range(40)], strict=True)
    }
    write_shard(corpus, "retrieval", retrieval[:25])
    write_shard(corpus, "retrieval", retrieval[25:], number=1)
    pairs = [
        {"source": "a" if i < 33 else "b", "query": queries[i], "positive": positives[i], "cluster_id": i // 2}
        for i in range(40)
    ]
    write_shard(corpus, "pretrain", pairs)
    scored = [
        {"source": "sts", "text_a": a, "text_b": b, "label": float(random.integers(0, 6)) / 5}
        for a, b in zip(texts[:30], texts[30:60], strict=True)
    ]
    write_shard(corpus, "sts", scored)
    write_lines(
        corpus / "evaluation" / "asked.jsonl",
        [{"query": q, "positives": [p]} for q, p in zip(texts[:30], texts[60:90], strict=True)],
    )
    write_lines(
        corpus / "evaluation" / "alike.jsonl",
        [{"text_a": each["text_a"], "text_b": each["text_b"], "label": each["label"]} for each in scored],
    )
    write_mined(corpus, passages, pools)


@pytest.fixture(scope="session")
def shared_training_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus before any training; tests must not write to it."""
    corpus = tmp_path_factory.mktemp("made") / "corpus"
    make_corpus(corpus)
    return corpus


@pytest.fixture
def training_corpus(shared_training_corpus: Path, tmp_path: Path) -> Path:
    """A copy of the corpus for this test alone."""
    return Path(shutil.copytree(shared_training_corpus, tmp_path / "corpus"))


@pytest.fixture
def write() -> SimpleNamespace:
    """Write parts of a corpus: `shard(corpus, kind, rows, number)`, `mined(corpus, passages, pools)`."""
    return SimpleNamespace(shard=write_shard, mined=write_mined)


@pytest.fixture
def judge(training_corpus: Path) -> Callable[..., None]:
    """Add judgements of the pools by a judge: `judge(name, *rows)`, rows of (query_id, passage_id, score)."""

    def add(name: str, *rows: tuple[int, int, float]) -> None:
        with duckdb.connect(str(training_corpus / "pools.duckdb")) as pools:
            pools.execute(JUDGEMENTS)
            pools.register("given", pl.DataFrame(rows, ["query_id", "passage_id", "score"], orient="row").to_arrow())
            pools.execute("INSERT INTO judgements BY NAME SELECT *, ? AS judge, now() AS created_at FROM given", [name])

    return add


@pytest.fixture
def shards() -> Callable[[Path, str], list[Path]]:
    """The shards of a folder under convert."""
    return lambda corpus, kind: sorted((corpus / "convert" / kind).glob("part-*.parquet"))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A pre-training run with an empty folder."""
    settings = PretrainSettings(log_every=10)
    job = Job(corpus=tmp_path, name="pretrain", model="", settings=settings, shards={}, fingerprint="f")
    job.folder.mkdir(parents=True)
    return job


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep tests from contacting the Hugging Face hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    yield


@pytest.fixture(scope="session")
def runs(shared_training_corpus: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The runs of training_runs.py by name; tests must not change them."""
    return Runs(tmp_path_factory.mktemp("runs"), shared_training_corpus, tiny)
