"""Ranges in exported folders, against sentence-transformers' vectors and bytes."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from conan_embedding import workflow
from conan_embedding.pipeline.encoder.model_folder import weights_fingerprint
from conan_embedding.pipeline.encoder.quantization import RANGES_FILE, quantize_int8
from conan_embedding.schemas.recipe import Recipe
from conan_embedding.trainer.model.calibration import find_ranges, sample_passages
from conan_embedding.trainer.model.embedding_model import load
from conan_embedding.trainer.model.export import export
from safetensors.numpy import load_file

PASSAGES = [chr(0x4E00 + place) * (1 + place % 5) for place in range(60)]


@pytest.fixture
def corpus(tmp_path: Path, write: SimpleNamespace) -> Path:
    """Training records in which passages are named more than once."""
    folder = tmp_path / "corpus"
    pairs = [{"source": "s", "query": text[:3], "positive": text, "cluster_id": 1} for text in PASSAGES[:30]]
    write.shard(folder, "pretrain", pairs[:20])
    write.shard(folder, "pretrain", pairs[10:], 1)
    lists = {"positives": PASSAGES[25:40], "cluster_ids": [1] * 15, "negatives": ["不是答案"]}
    write.shard(folder, "retrieval", [{"source": "s", "query": "问", **lists}])
    write.shard(folder, "passages", [{"source": "s", "text": text, "cluster_id": 1} for text in PASSAGES[35:]])
    return folder


def test_a_sample_is_the_same_whatever_the_order(corpus: Path, tmp_path: Path) -> None:
    expected = sorted(PASSAGES, key=lambda text: hashlib.md5(text.encode()).hexdigest())
    assert sample_passages(corpus, 25).to_list() == expected[:25]
    assert sample_passages(corpus, 1000).to_list() == expected
    (tmp_path / "empty").mkdir()
    assert sample_passages(tmp_path / "empty", 1000).is_empty()


def test_ranges_are_those_of_the_exported_folders_vectors(tiny: Path, corpus: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.util.quantization import quantize_embeddings

    settings = {"model": str(tiny), "folder": str(tmp_path / "model"), "calibration": 50, "prompts": {"passage": "一"}}
    outcome = workflow.export(corpus, Recipe.model_validate({"export": settings}))
    folder = Path(outcome.folder)
    ranges = load_file(folder / RANGES_FILE)
    assert {width: (values.shape, values.dtype) for width, values in ranges.items()} == {"32": ((2, 32), np.float32)}
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    texts = sample_passages(corpus, 50).to_list()
    vectors = model.encode_document(texts, normalize_embeddings=True)
    assert ranges["32"] == pytest.approx(np.stack([vectors.min(axis=0), vectors.max(axis=0)]), abs=1e-6)
    stored = quantize_embeddings(vectors, "int8", ranges=ranges["32"])
    assert np.array_equal(stored, quantize_int8(vectors, ranges["32"]))
    assert "in the vectors of 50 passages" in (folder / "README.md").read_text("utf-8")

    fingerprint = weights_fingerprint(folder)
    (folder / RANGES_FILE).unlink()
    assert weights_fingerprint(folder) == fingerprint
    without = workflow.export(corpus, Recipe.model_validate({"export": settings | {"calibration": 0}}))
    assert not (Path(without.folder) / RANGES_FILE).exists() and without.warnings == outcome.warnings
    elsewhere = workflow.export(tmp_path, Recipe.model_validate({"export": settings}))
    assert elsewhere.warnings[-1].startswith("no int8 ranges: the corpus has no training records")
    assert not (folder / RANGES_FILE).exists()


def test_each_trained_width_has_ranges(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = load(tiny)
    ranges = find_ranges(model, tokenizer, pl.Series(PASSAGES), [8, 32])
    folder = export(model, tokenizer, tmp_path / "model", ranges=ranges)
    assert model.training
    vectors = pytest.importorskip("sentence_transformers").SentenceTransformer(str(folder), device="cpu")
    short = vectors.encode(PASSAGES, truncate_dim=8, normalize_embeddings=True)
    assert load_file(folder / RANGES_FILE)["8"] == pytest.approx(np.stack([short.min(0), short.max(0)]), abs=1e-6)


def test_widths_are_those_of_the_last_stage(tiny: Path, corpus: Path) -> None:
    trained = corpus / "train" / "pretrain"
    trained.mkdir(parents=True)
    (trained / "model").symlink_to(tiny)
    settings = {"matryoshka_dims": [8, 32], "sts_batch": 0}
    job = {"corpus": str(corpus), "model": str(tiny), "settings": settings, "shards": {}}
    (trained / "job.json").write_text(json.dumps(job))
    (trained / "log.jsonl").write_text('{"event": "start", "steps": 1, "world_size": 1}\n')
    folder = workflow.export(corpus, Recipe.model_validate({"export": {"model": "pretrain"}})).folder
    assert set(load_file(Path(folder) / RANGES_FILE)) == {"8", "32"}
