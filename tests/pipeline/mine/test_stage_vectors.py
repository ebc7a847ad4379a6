"""The vectors that mine searches: kept for the next run, with the prompts of model and source, always finite."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conan_embedding.pipeline.corpus.pools import FILE
from conan_embedding.pipeline.encoder import encoder as encoders
from conan_embedding.pipeline.encoder.encoder import Encoder
from conan_embedding.pipeline.encoder.model_folder import ModelError
from conan_embedding.pipeline.mine.show_pool import show_pool
from conan_embedding.pipeline.mine.stage import mine
from conan_embedding.schemas.errors import CorpusError
from conan_embedding.schemas.settings import SourcePrompts
from mined_pools import ONE, brute_force, found, settings, vectors


def test_vectors_are_kept_for_the_next_run(tmp_path: Path, bge: Path, records, write_shards, monkeypatch) -> None:
    """Another method encodes nothing, more data the new texts, another model or prompt all texts that it affects."""
    encoded: list[str] = []

    def encode(encoder: Encoder, texts: pa.Array, prompt: str, *, real: Callable = encoders.encode) -> np.ndarray:
        encoded.extend(prompt + text for text in texts.to_pylist())
        return real(encoder, texts, prompt)

    def run(*rows: list[dict], folder: Path = bge, **more) -> list[str]:
        encoded.clear()
        write_shards(tmp_path, "convert/retrieval", *rows)
        mine(tmp_path, settings(folder, **more), ONE)
        return sorted(encoded)

    def texts(rows: list[dict], prompt: str = "") -> list[str]:
        named = {text for row in rows for text in row["positives"]} | {prompt + row["query"] for row in rows}
        return sorted(named)

    monkeypatch.setattr(encoders, "encode", encode)
    assert run(records[:50]) == texts(records[:50])
    pools = found(tmp_path)
    assert run(records[:50], method="topk-abs") == run(records[:50], margin=0.9) == []
    assert run(records[:50]) == [] and found(tmp_path) == pools
    assert run(records[:80]) == sorted(set(texts(records[:80])) - set(texts(records[:50])))
    assert run(records[:80], prompts={"query": "问："}) == sorted(f"问：{row['query']}" for row in records[:80])
    assert len(list((tmp_path / "vectors").iterdir())) == 2
    assert run(records[:80], prompts={"query": "问："}, max_length=16) == texts(records[:80], "问：")
    assert len(list((tmp_path / "vectors").iterdir())) == 2
    shutil.rmtree(tmp_path / "vectors")
    assert run(records[:80], prompts={"query": "问："}, max_length=16) == []  # the pools are still there


def test_the_model_folder_s_own_prompt(tmp_path: Path, bge: Path, records, write_shards, monkeypatch) -> None:
    known = vectors(monkeypatch)
    write_shards(tmp_path, "convert/retrieval", records)
    (bge / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "搜："}}))
    mine(tmp_path, settings(bge), ONE)
    prompted = {row["query"]: known[f"搜：{row['query']}"] for row in records}
    assert found(tmp_path)[0] == brute_force(records, known | prompted, "topk-percpos", 8)
    mine(tmp_path, settings(bge, prompts={"query": ""}), ONE)
    assert found(tmp_path)[0] == brute_force(records, known, "topk-percpos", 8)


def test_each_source_has_its_own_prompts(tmp_path: Path, bge: Path, records, write_shards, monkeypatch) -> None:
    """A text that two sources have takes the prompts of the first by name."""
    known = vectors(monkeypatch)
    named = [record | {"source": "bac"[number % 3]} for number, record in enumerate(records)]
    write_shards(tmp_path, "convert/retrieval", named[::2], named[1::2])
    before = {"a": ("Instruct: 找\nQuery: ", "文："), "b": ("问：", ""), "c": ("搜：", "文：")}
    sources = {"a": SourcePrompts(instruction="找"), "b": SourcePrompts(query="问：", passage="")}
    prompted: dict[str, np.ndarray] = {}
    for record in sorted(named, key=lambda record: record["source"]):
        of_query, of_passage = before[record["source"]]
        prompted.setdefault(record["query"], known[of_query + record["query"]])
        for text in record["positives"]:
            prompted.setdefault(text, known[of_passage + text])
    chosen = settings(bge, prompts={"query": "搜：", "passage": "文："})
    mine(tmp_path, chosen, ONE, sources)
    assert found(tmp_path)[0] == brute_force(named, prompted, "topk-percpos", 8)
    assert len(list((tmp_path / "vectors").iterdir())) == 5

    monkeypatch.setattr("conan_embedding.pipeline.encoder.encoder.dimension", lambda encoder: 16)
    shown = [show_pool(tmp_path, named[number]["query"], chosen, sources) for number in range(3)]
    shutil.rmtree(tmp_path / "vectors")
    for number, of_stored in enumerate(shown):
        again = show_pool(tmp_path, named[number]["query"], chosen, sources)
        for key in ("score", "text", "verdict"):
            values = [[row[key] for row in one.passages] for one in (again, of_stored)]
            assert values[0] == (pytest.approx(values[1], abs=1e-6) if key == "score" else values[1])
    with pytest.raises(CorpusError, match="with other settings"):
        show_pool(tmp_path, named[0]["query"], chosen)

    mine(tmp_path, chosen, ONE)
    alike = {text: known[("搜：" if text in {each["query"] for each in named} else "文：") + text] for text in prompted}
    assert found(tmp_path)[0] == brute_force(named, alike, "topk-percpos", 8)


@pytest.mark.parametrize(("wrong", "counts"), [("query", "1 of 190 queries"), ("passage", "2 of 180 passages")])
def test_vectors_that_are_not_finite_are_refused(
    wrong: str, counts: str, tmp_path: Path, bge: Path, records, write_shards, monkeypatch
) -> None:
    known = vectors(monkeypatch)
    chosen = (
        [records[0]["query"]] if wrong == "query" else sorted(records[0]["positives"] + records[1]["positives"])[:2]
    )
    for text, value in zip(chosen, (np.nan, np.inf), strict=False):
        known[text] = np.full(16, value, np.float32)
    write_shards(tmp_path, "convert/retrieval", records)
    with pytest.raises(ModelError, match=f"{counts} have NaN or infinite numbers: {'; '.join(sorted(chosen))};"):
        mine(tmp_path, settings(bge), ONE)
    assert not (tmp_path / FILE).exists()
