"""Mine with an encoder of random vectors, and find the same pools by brute force."""

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from conan_embedding.pipeline.corpus.pools import FILE, read_candidates
from conan_embedding.pipeline.encoder.encoder import Encoder
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.schemas.settings import MineSettings

ONE = Engine(workers=1)
HAN = [chr(0x4E00 + place) for place in range(1000)]
ORIGIN = {"source": "exam", "category": "web_page"}


def vectors(monkeypatch: pytest.MonkeyPatch, width: int = 16) -> dict[str, np.ndarray]:
    """Replace the encoder with one with random vectors, always the same for the same text."""

    def of(text: str) -> np.ndarray:
        drawn = np.random.default_rng(list(text.encode())).standard_normal(width) + 0.4
        return (drawn / np.linalg.norm(drawn)).astype(np.float32)

    class Known(dict):
        def __missing__(self, text: str) -> np.ndarray:
            self[text] = of(text)
            return self[text]

    known = Known()

    def encode(encoder: Encoder, texts: pa.Array, prompt: str) -> np.ndarray:
        return np.array([known[prompt + text] for text in texts.to_pylist()]).reshape(-1, width)

    monkeypatch.setattr("conan_embedding.pipeline.encoder.encoder.encode", encode)
    return known


def settings(folder: Path, **more) -> MineSettings:
    return MineSettings(model=str(folder), **{"top_k": 8, "max_length": 32} | more)


def brute_force(records: list[dict], known: dict[str, np.ndarray], method: str, top_k: int) -> dict[str, list[str]]:
    """Return each query's pool as texts."""
    clusters: dict[str, set[int]] = {}
    positives: dict[str, set[str]] = {}
    for record in records:
        positives.setdefault(record["query"], set()).update(record["positives"])
        for text, cluster in zip(record["positives"], record["cluster_ids"], strict=True):
            clusters.setdefault(text, set()).add(cluster)
    pools = {}
    for query, own in positives.items():
        mine_too = set().union(*(clusters[text] for text in own))
        lowest = min(known[query] @ known[text] for text in own)
        ceiling = {
            "topk": np.inf,
            "topk-shifted": np.inf,
            "topk-abs": 0.7,
            "topk-marginpos": lowest - 0.05,
            "topk-percpos": 0.95 * lowest if lowest > 0 else 1.05 * lowest,
        }[method]
        allowed = [text for text, theirs in clusters.items() if not theirs & mine_too]
        scored = sorted(((float(known[query] @ known[text]), text) for text in allowed), reverse=True)
        shift = 10 if method == "topk-shifted" else 0
        pools[query] = [text for score, text in scored if score < ceiling][shift : shift + top_k]
    return pools


def found(corpus: Path) -> tuple[dict[str, list[str]], dict[str, list[float]]]:
    with duckdb.connect(str(corpus / FILE), read_only=True) as connection:
        texts = dict(connection.execute("SELECT passage_id, text FROM passages").fetchall())
    pools = read_candidates(corpus)
    named = {row["query"]: [texts[each] for each in row["passage_ids"]] for row in pools.to_dicts()}
    return named, dict(pools.select("query", "scores").iter_rows())
