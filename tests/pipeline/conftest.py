"""Small corpora and small models for the tests of the stages."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from conan_embedding.pipeline.corpus import folder as folders
from conan_embedding.pipeline.corpus.shard_writer import ShardWriter
from conan_embedding.schemas.pairs import CLUSTERED, PAIR, SCORED, rejected
from conan_embedding.schemas.training import TRAINING
from conan_embedding.trainer.model.bootstrap import tiny_bert

Row = dict[str, Any]

_SCHEMAS = {"ingest": PAIR, "filter": PAIR, "dedup": CLUSTERED, "score": SCORED, "evaluation": PAIR} | {
    f"convert/{kind}": schema for kind, schema in TRAINING.items()
}


@pytest.fixture
def pair() -> Callable[..., Row]:
    """Make a row of schemas.pairs.SCORED, as ingest names it."""

    def make(query: str, positive: str, source: str = "web", task: str = "pretrain", **more: Any) -> Row:
        named = "\x1f".join([source, task, query, positive])
        cluster = int.from_bytes(hashlib.md5(positive.encode()).digest()[:7])
        return {
            "pair_id": hashlib.md5(named.encode()).hexdigest(),
            "source": source,
            "category": "web_page",
            "format": "question_answer",
            "task": task,
            "query": query,
            "positive": positive,
            "negatives": [],
            "label": None,
            "meta": "{}",
            "cluster_id": cluster,
            "score": None,
        } | more

    return make


@pytest.fixture
def write_shards() -> Callable[..., None]:
    """Write the shards of a stage as the stage does: lists of rows, with their rejects where given."""

    def write(corpus: Path, folder: str, *shards: Sequence[Row], rejects: Sequence[Row] = ()) -> None:
        schema = _SCHEMAS[folder]
        stage = folder.partition("/")[0]
        for number, rows in enumerate(shards):
            with ShardWriter(
                corpus / folder / f"part-{number:05d}.parquet",
                schema,
                rejected(schema),
                stage=stage,
                version=1,
                fingerprint=folders.fingerprint(folder, number, rows),
            ) as writer:
                thrown = rejects if number == 0 else ()
                writer.received(len(rows) + len(thrown))
                writer.keep(pa.Table.from_pylist(list(rows), schema))
                writer.reject(pa.Table.from_pylist(list(thrown), rejected(schema)))

    return write


@pytest.fixture
def read() -> Callable[..., pl.DataFrame]:
    """Read all rows of a stage's shards, or of its rejects."""

    def read_all(corpus: Path, folder: str) -> pl.DataFrame:
        found = sorted((corpus / folder).glob("part-*.parquet"))
        frames = [pl.read_parquet(shard) for shard in found]
        names = ["source", "category", "format", "task"]
        return pl.concat(
            frame.with_columns(pl.col(name).cast(pl.String) for name in names if name in frame.columns)
            for frame in frames
        )

    return read_all


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained encoder of one layer, a plain folder."""
    texts = pa.chunked_array([[chr(point) for point in range(0x4E00, 0x5200)] + ["hello world 2024"]])
    shape = {"layers": 1, "hidden": 32, "heads": 2, "intermediate": 64, "max_length": 64}
    return tiny_bert(tmp_path_factory.mktemp("model") / "tiny", texts=texts, **shape)


@pytest.fixture
def bge(tiny_model: Path, tmp_path: Path) -> Path:
    """The same encoder in bge's own layout: Transformer, Pooling by the first token, Normalize."""
    folder = tmp_path / "bge"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64, "do_lower_case": true}')
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "2_Normalize").mkdir()
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test asks the Hugging Face hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    yield
