"""The score stage against sentence-transformers, and its cutoffs."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conan_embedding.pipeline import score as module
from conan_embedding.pipeline.encoder import ModelError
from conan_embedding.pipeline.engine import Engine
from conan_embedding.pipeline.score import score
from conan_embedding.schemas.settings import ScoreSettings
from safetensors.torch import load_file, save_file

ONE = Engine(workers=1)


@pytest.fixture
def rows(pair) -> list[dict]:
    made = [pair(f"一丁七{chr(0x4E00 + number)}", chr(0x4E80 + 7 * number) * (1 + number % 9)) for number in range(30)]
    made += [pair("一丁", "丈三", "stsb", "sts", label=0.5), pair("一丁", "体育", "topics", "classification")]
    return [*made, pair("一丁", "丈三", "exam", "retrieval")]


@pytest.fixture
def count_texts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of texts that were given to the encoder."""
    counts: list[int] = []
    whole = module.encode
    monkeypatch.setattr(module, "encode", lambda encoder, texts: (counts.append(len(texts)), whole(encoder, texts))[1])
    return counts


def settings(folder: Path, cutoff: float) -> ScoreSettings:
    return ScoreSettings(model=str(folder), cutoff=cutoff, max_length=32)


def scores(read, corpus: Path) -> dict[str, float | None]:
    frames = [read(corpus, folder).select("pair_id", "score") for folder in ("score", "score/rejected")]
    return dict(pl.concat(frames).iter_rows())


def test_scores_are_those_of_sentence_transformers(tmp_path: Path, bge: Path, rows, write_shards, read) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="sentence-transformers is missing")
    model = sentence_transformers.SentenceTransformer(str(bge), device="cpu")
    model.max_seq_length = 32
    left, right = (model.encode([row[side] for row in rows[:30]]) for side in ("query", "positive"))
    expected = np.sum(left * right, axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    cutoff = float(np.median(expected))

    write_shards(tmp_path, "dedup", rows[::2], rows[1::2], [])
    summary = score(tmp_path, settings(bge, cutoff), ONE)
    found = scores(read, tmp_path)
    assert np.allclose([found[row["pair_id"]] for row in rows[:30]], expected, rtol=0, atol=1e-5)
    assert [found[row["pair_id"]] for row in rows[30:]] == [None, None, None]

    thrown = read(tmp_path, "score/rejected")
    assert set(thrown["pair_id"]) == {row["pair_id"] for row, own in zip(rows, expected, strict=False) if own < cutoff}
    assert (thrown["score"] < cutoff).all()
    assert thrown["detail"][0] == f"{round(thrown['score'][0], 3)} < {cutoff:g}"
    assert (summary.rows_in, summary.rows_out) == (33, 18)
    assert summary.rejected == {"score": 15}
    assert read(tmp_path, "score").drop("score").columns == read(tmp_path, "dedup").columns


def test_another_cutoff_reads_the_scores(tmp_path: Path, bge: Path, rows, write_shards, read, count_texts) -> None:
    write_shards(tmp_path, "dedup", rows[::2], rows[1::2])
    assert score(tmp_path, settings(bge, -1), ONE).rows_out == 33
    first = scores(read, tmp_path)
    assert count_texts == [30, 30]
    assert score(tmp_path, settings(bge, -1), ONE).skipped == 2

    middle = float(np.median([each for each in first.values() if each is not None]))
    summary = score(tmp_path, settings(bge, middle), ONE)
    assert (summary.skipped, summary.rejected["score"]) == (0, 15)
    assert scores(read, tmp_path) == first
    score(tmp_path, settings(bge, -1), ONE)
    assert read(tmp_path, "score")["pair_id"].to_list() == read(tmp_path, "dedup")["pair_id"].to_list()
    assert count_texts == [30, 30]

    write_shards(tmp_path, "dedup", rows[::2], rows[1:10])
    assert score(tmp_path, settings(bge, -1), ONE).skipped == 1
    assert len(count_texts) == 3


def test_what_a_killed_run_left_half_is_scored_anew(
    tmp_path: Path, bge: Path, rows, write_shards, read, count_texts
) -> None:
    """Rejects are committed before their shard: after a kill between the two, some rows are in neither."""
    write_shards(tmp_path, "dedup", rows)
    score(tmp_path, settings(bge, 1), ONE)
    first = scores(read, tmp_path)
    thrown = tmp_path / "score" / "rejected" / "part-00000.parquet"
    pl.read_parquet(thrown).head(25).write_parquet(thrown)
    score(tmp_path, settings(bge, -1), ONE)
    assert count_texts == [60, 2 * (30 - 25)]
    assert scores(read, tmp_path) == pytest.approx(first, abs=1e-6)


def test_another_model_of_the_same_name_is_read(tmp_path: Path, bge: Path, rows, write_shards, read) -> None:
    write_shards(tmp_path, "dedup", rows)
    score(tmp_path, settings(bge, -1), ONE)
    first = scores(read, tmp_path)
    weights = load_file(bge / "model.safetensors")
    weights = {name: value.flip(0).contiguous() for name, value in weights.items()}
    save_file(weights, bge / "model.safetensors", metadata={"format": "pt"})
    assert score(tmp_path, settings(bge, -1), ONE).skipped == 0
    assert scores(read, tmp_path) != first


def test_a_score_that_is_no_number_is_rejected(tmp_path: Path, bge: Path, rows, write_shards, read) -> None:
    weights = {name: value * float("nan") for name, value in load_file(bge / "model.safetensors").items()}
    save_file(weights, bge / "model.safetensors", metadata={"format": "pt"})
    write_shards(tmp_path, "dedup", rows)
    assert score(tmp_path, settings(bge, -1), ONE).rejected == {"score": 30}
    assert set(read(tmp_path, "score/rejected")["detail"]) == {"NaN < -1"}


def test_a_model_that_can_not_be_read_is_said_once(tmp_path: Path, bge: Path, rows, write_shards) -> None:
    write_shards(tmp_path, "dedup", rows, rows)
    (bge / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no Hugging Face model with safetensors"):
        score(tmp_path, settings(bge, 0.4), ONE)
    shutil.rmtree(bge)
    with pytest.raises(ModelError, match="is no folder here"):
        score(tmp_path, settings(bge, 0.4), ONE)
