"""The score stage against sentence-transformers: cutoffs, reasons, and that no text is encoded twice."""

import json
import shutil
from pathlib import Path
from typing import Any

import forks
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from conan_embedding.pipeline.corpus import folder as folders
from conan_embedding.pipeline.corpus import shard_writer
from conan_embedding.pipeline.encoder.model_folder import ModelError
from conan_embedding.pipeline.engine.stage import StageError
from conan_embedding.pipeline.score import pair_scores as module
from conan_embedding.pipeline.score.stage import score
from score_runs import ONE, change_weights, notes, reference, scores, settings


@pytest.fixture
def rows(pair) -> list[dict]:
    made = [pair(f"一丁七{chr(0x4E00 + number)}", chr(0x4E80 + 7 * number) * (1 + number % 9)) for number in range(30)]
    made += [pair("一丁", "丈三", "stsb", "sts", label=0.5), pair("一丁", "体育", "topics", "classification")]
    return [*made, pair("一丁", "丈三", "exam", "retrieval")]


@pytest.fixture
def groups_of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "ROW_GROUP", 8)


def everything(corpus: Path) -> dict[str, Any]:
    """Return all that the stage left behind, except how long it took."""
    places = {str(place.relative_to(corpus)): place for place in (corpus / "score").rglob("*")}
    found: dict[str, Any] = {name: pq.read_table(place).to_pylist() for name, place in places.items() if place.suffix}
    return found | {"names": sorted(places), "notes": notes(corpus)}


def test_scores_are_those_of_sentence_transformers(tmp_path: Path, bge: Path, rows, write_shards, read) -> None:
    expected = reference(bge, rows[:30])
    cutoff = float(np.median(expected))

    write_shards(tmp_path, "dedup", rows[::2], rows[1::2], [])
    summary = score(tmp_path, settings(bge, cutoff), ONE)
    found = scores(read, tmp_path)
    assert np.allclose([found[row["pair_id"]] for row in rows[:30]], expected, rtol=0, atol=1e-5)
    assert [found[row["pair_id"]] for row in rows[30:]] == [None, None, None]

    thrown = read(tmp_path, "score/rejected")
    assert set(thrown["pair_id"]) == {row["pair_id"] for row, own in zip(rows, expected, strict=False) if own < cutoff}
    assert (thrown["score"] < cutoff).all()
    for own, detail in thrown.select("score", "detail").iter_rows():
        shown, limit = detail.split(" < ")
        assert float(shown) == pytest.approx(own, abs=5e-4)
        assert (float(shown) < cutoff, limit) == (True, f"{cutoff:g}")
    assert (summary.rows_in, summary.rows_out) == (33, 18)
    assert summary.rejected == {"score": 15}
    added = ("score", "mismatched", "rank")
    assert read(tmp_path, "score").drop(added).columns == read(tmp_path, "dedup").columns


def test_a_histogram_of_all_scores_is_in_the_footers(tmp_path: Path, bge: Path, rows, write_shards) -> None:
    expected = reference(bge, rows[:30])
    write_shards(tmp_path, "dedup", rows[::2], rows[1::2], rows[30:])
    for cutoff in (-1, float(np.median(expected)), 1):  # however many are rejected, and whether encoded or read
        summary = score(tmp_path, settings(bge, cutoff), ONE)
        found = [note["histogram"] for note in notes(tmp_path)]
        assert [sum(counts) for counts in found] == [15, 15, 0]
        assert np.sum(found, axis=0).tolist() == np.histogram(expected, 64, (-1, 1))[0].tolist()
        assert (summary.notes["scored"], summary.notes["truncated"]) == (30, 0)
        for name, share in {"p5": 0.05, "p50": 0.5, "p95": 0.95}.items():
            lower, upper = (np.quantile(expected, share, method=way) for way in ("lower", "higher"))
            assert lower - 2 / 64 <= summary.notes[name] <= upper + 2 / 64


def test_without_scores_there_are_no_quantiles(tmp_path: Path, bge: Path, rows, write_shards) -> None:
    write_shards(tmp_path, "dedup", rows[30:])
    assert score(tmp_path, settings(bge, 0.4), ONE).notes == {"scored": 0, "truncated": 0}


def test_another_cutoff_reads_the_scores(
    tmp_path: Path, bge: Path, rows, pair, write_shards, read, count_texts, no_model
) -> None:
    nothing = pair("\ufe0f\u200b", "丈三")
    write_shards(tmp_path, "dedup", rows[::2], [*rows[1::2], nothing])
    assert score(tmp_path, settings(bge, -1), ONE).rows_out == 33
    first, whole = scores(read, tmp_path), everything(tmp_path)
    assert count_texts == [15, 15, 15, 15]
    assert score(tmp_path, settings(bge, -1), ONE).skipped == 2

    no_model()
    middle = float(np.median([each for each in first.values() if each is not None]))
    summary = score(tmp_path, settings(bge, middle), ONE)
    assert (summary.skipped, summary.rejected) == (0, {"score": 15, "no_tokens": 1})
    assert scores(read, tmp_path) == first
    score(tmp_path, settings(bge, -1), ONE)
    assert everything(tmp_path) == whole


def test_other_pairs_are_scored_anew(tmp_path: Path, bge: Path, rows, write_shards, count_texts) -> None:
    write_shards(tmp_path, "dedup", rows[::2], rows[1::2])
    score(tmp_path, settings(bge, -1), ONE)
    write_shards(tmp_path, "dedup", rows[::2], rows[1:10])
    assert score(tmp_path, settings(bge, -1), ONE).skipped == 1
    assert count_texts == [15, 15, 15, 15, 9, 9]


def test_a_format_has_its_own_cutoff(tmp_path: Path, bge: Path, rows, write_shards, read, no_model) -> None:
    formats = ["question_answer", "title_content", "prompt_response"]
    rows = [row | {"format": formats[number % 3]} for number, row in enumerate(rows[:30])]
    write_shards(tmp_path, "dedup", rows)
    cutoffs = {"question_answer": 1, "title_content": -1}
    score(tmp_path, settings(bge, 0.9999, cutoffs=cutoffs), ONE)
    found, kept, thrown = scores(read, tmp_path), read(tmp_path, "score"), read(tmp_path, "score/rejected")
    expected = {
        row["pair_id"]: cutoff
        for row in rows
        if found[row["pair_id"]] < np.float32(cutoff := cutoffs.get(row["format"], 0.9999))
    }
    assert set(thrown["pair_id"]) == set(expected)
    assert set(thrown["format"]) >= {"question_answer"} and "title_content" not in set(thrown["format"])
    assert kept.height + thrown.height == 30 and "title_content" in set(kept["format"])
    for pair_id, value, detail in thrown.select("pair_id", "score", "detail").iter_rows():
        value_said, cutoff_said = detail.split(" < ")
        assert float(value_said) == pytest.approx(value, abs=6e-4)
        assert cutoff_said == f"{expected[pair_id]:g}"

    no_model()
    same = dict.fromkeys(("prompt_response", "input_output"), 0.9999) | cutoffs
    assert score(tmp_path, settings(bge, 0.5, cutoffs=same), ONE).skipped == 1
    assert score(tmp_path, settings(bge, 0.9999, cutoffs={}), ONE).skipped == 0


def test_settings_that_decide_no_score_encode_nothing(tmp_path: Path, bge: Path, rows, write_shards, no_model) -> None:
    write_shards(tmp_path, "dedup", rows)
    score(tmp_path, settings(bge, 0), ONE)
    no_model()
    for more in ({"batch_tokens": 64}, {"compile": True}):
        assert score(tmp_path, settings(bge, 0, **more), ONE).skipped == 1


@pytest.mark.parametrize("more", [{"pooling": "mean"}, {"max_length": 4}, {"prompts": {"query": "一"}}])
def test_settings_that_decide_scores_encode_anew(tmp_path: Path, bge: Path, rows, write_shards, read, more) -> None:
    write_shards(tmp_path, "dedup", rows)
    score(tmp_path, settings(bge, -1), ONE)
    first = scores(read, tmp_path)
    assert score(tmp_path, settings(bge, -1, **more), ONE).skipped == 0
    assert scores(read, tmp_path) != first


def test_the_prompt_stands_before_queries_alone(tmp_path: Path, bge: Path, rows, write_shards, read) -> None:
    expected = reference(bge, rows[:30], "丁丈三")
    write_shards(tmp_path, "dedup", rows)
    score(tmp_path, settings(bge, -1, prompts={"query": "丁丈三"}), ONE)
    first = scores(read, tmp_path)
    assert np.allclose([first[row["pair_id"]] for row in rows[:30]], expected, rtol=0, atol=1e-5)

    (bge / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "丁丈三"}}), "utf-8")
    assert score(tmp_path, settings(bge, -1), ONE).skipped == 0
    assert scores(read, tmp_path) == first
    (bge / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "一"}}), "utf-8")
    assert score(tmp_path, settings(bge, -1), ONE).skipped == 0
    assert scores(read, tmp_path) != first


def test_texts_that_the_model_cuts_short_are_counted(tmp_path: Path, bge: Path, pair, write_shards) -> None:
    """Four tokens leave room for two characters, next to the two special tokens."""
    texts = [("一", "丁丈"), ("七", "丁丈三"), ("一丁七丈", "丁丈三上"), ("一丁七丈", "三")]
    write_shards(tmp_path, "dedup", [pair(*text) for text in texts], [pair("一丁七", "丁丈")])
    summary = score(tmp_path, settings(bge, -1, max_length=4), ONE)
    assert [note["truncated"] for note in notes(tmp_path)] == [3, 1]
    assert summary.notes["truncated"] == 4
    assert score(tmp_path, settings(bge, 1, max_length=4), ONE).notes["truncated"] == 4


def test_what_is_missing_of_a_shard_is_scored_anew(
    tmp_path: Path, bge: Path, rows, write_shards, read, count_texts
) -> None:
    """Somebody may have deleted a shard's rejects, or some of them, to save space."""
    write_shards(tmp_path, "dedup", rows)
    score(tmp_path, settings(bge, 1), ONE)
    first = scores(read, tmp_path)
    thrown = tmp_path / "score" / "rejected" / "part-00000.parquet"
    pl.read_parquet(thrown).head(25).write_parquet(thrown)
    score(tmp_path, settings(bge, 0.99999), ONE)
    assert count_texts == [30, 30, 30 - 25, 30 - 25]
    assert scores(read, tmp_path) == pytest.approx(first, abs=1e-6)
    gone = read(tmp_path, "score/rejected").height
    thrown.unlink()
    score(tmp_path, settings(bge, -1), ONE)
    assert count_texts[4:] == [gone, gone]
    assert scores(read, tmp_path) == pytest.approx(first, abs=1e-6)


@pytest.mark.usefixtures("groups_of_eight")
def test_a_shard_that_was_killed_goes_on_with_its_next_row_group(
    tmp_path: Path, bge: Path, rows, pair, write_shards, read, count_texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*rows[:3], pair("\ufe0f", "丈三"), *rows[3:30], pair("一" * 50, "丁" * 50)]
    for corpus in ("broken", "whole"):
        write_shards(tmp_path / corpus, "dedup", rows)
    assert pq.ParquetFile(tmp_path / "broken/dedup/part-00000.parquet").num_row_groups == 4
    score(tmp_path / "whole", settings(bge, 0.9999), ONE)
    assert count_texts == [7, 7, 8, 8, 8, 8, 8, 8]

    counted = module.encode_after

    def die(encoder: Any, prompts: Any, texts: Any) -> Any:
        if len(count_texts) == 12:
            raise MemoryError("killed")
        return counted(encoder, prompts, texts)

    monkeypatch.setattr(module, "encode_after", die)
    with pytest.raises(StageError, match="killed"):
        score(tmp_path / "broken", settings(bge, 0.9999), ONE)
    assert count_texts[8:] == [7, 7, 8, 8]
    monkeypatch.setattr(module, "encode_after", counted)
    score(tmp_path / "broken", settings(bge, -1), ONE)  # the saved scores do not depend on the cutoff
    assert count_texts[12:] == [8, 8, 8, 8]
    score(tmp_path / "broken", settings(bge, 0.9999), ONE)
    assert len(count_texts) == 16
    assert everything(tmp_path / "broken") == everything(tmp_path / "whole")
    assert notes(tmp_path / "broken")[0]["truncated"] == 2
    assert read(tmp_path / "broken", "score/rejected")["reason"].to_list().count("no_tokens") == 1


DYING = """
import os, sys
from pathlib import Path
from conan_embedding.pipeline.score import pair_scores
from conan_embedding.pipeline.engine.local import Engine
from conan_embedding.pipeline.score.stage import score
from conan_embedding.schemas.settings import ScoreSettings
calls, whole = [], pair_scores.encode_after
def encode(*arguments):
    calls.append(arguments)
    if len(calls) == 6:
        os._exit(9)
    return whole(*arguments)
pair_scores.encode_after = encode
score(Path(sys.argv[1]), ScoreSettings.model_validate_json(sys.argv[2]), Engine(workers=1))
"""


@pytest.mark.usefixtures("groups_of_eight")
def test_a_process_that_dies_leaves_the_scores_of_its_row_groups(
    tmp_path: Path, bge: Path, rows, write_shards, count_texts
) -> None:
    write_shards(tmp_path, "dedup", rows[:8], rows[8:30])
    chosen = settings(bge, 0.9999)
    (tmp_path / "dying.py").write_text(DYING, "utf-8")
    assert forks.call(forks.program, tmp_path / "dying.py", tmp_path, chosen.model_dump_json()).returncode == 9
    left = shutil.copytree(tmp_path / "score", tmp_path / "left")
    assert [place.name for place in left.glob("part-*")] == ["part-00000.parquet"]
    assert len(list(left.glob(".parts/*-0*"))) == 1  # of the second shard: the first is finished
    score(tmp_path, chosen, ONE)
    assert count_texts == [8, 8, 6, 6]
    resumed = everything(tmp_path)
    assert [name for name in resumed["names"] if "/." in name] == []

    change_weights(bge, 1.0)  # scores that another model left behind are never used
    shutil.rmtree(tmp_path / "score")
    left.rename(tmp_path / "score")
    del count_texts[:]
    score(tmp_path, chosen, ONE)
    assert count_texts == [8, 8, 8, 8, 8, 8, 6, 6]
    again = everything(tmp_path)
    assert again["names"] == resumed["names"]
    assert again["notes"][0]["scores"] != resumed["notes"][0]["scores"]


def test_a_kill_between_two_shards_of_a_place_loses_no_score(
    tmp_path: Path, bge: Path, rows, write_shards, no_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old shard is deleted before its successor gets its name: for a moment neither is there."""
    write_shards(tmp_path, "dedup", rows)
    score(tmp_path, settings(bge, -1), ONE)
    whole, named = everything(tmp_path), shard_writer.commit
    no_model()

    def die(temporary: Path, path: Path) -> None:
        if path.parent.name == "rejected":
            raise MemoryError("killed")
        named(temporary, path)

    monkeypatch.setattr(shard_writer, "commit", die)
    with pytest.raises(StageError, match="killed"):
        score(tmp_path, settings(bge, 1), ONE)
    assert folders.committed(tmp_path, "score") == []
    monkeypatch.setattr(shard_writer, "commit", named)
    monkeypatch.setattr("conan_embedding.pipeline.score.stage.loaded", lambda *_: None)
    score(tmp_path, settings(bge, -1), ONE)
    assert everything(tmp_path) == whole


def test_another_model_of_the_same_name_is_read(tmp_path: Path, bge: Path, rows, write_shards, read) -> None:
    write_shards(tmp_path, "dedup", rows)
    score(tmp_path, settings(bge, -1), ONE)
    first = scores(read, tmp_path)
    change_weights(bge, 1.0)
    assert score(tmp_path, settings(bge, -1), ONE).skipped == 0
    assert scores(read, tmp_path) != first


def test_a_score_that_is_no_number_is_rejected(tmp_path: Path, bge: Path, rows, write_shards, read, no_model) -> None:
    change_weights(bge, float("nan"))
    write_shards(tmp_path, "dedup", rows)
    for cutoff in (-1, 0.5):
        summary = score(tmp_path, settings(bge, cutoff), ONE)
        assert (summary.rejected, summary.notes) == ({"score_nan": 30}, {"scored": 0, "truncated": 0})
        thrown = read(tmp_path, "score/rejected")
        assert set(thrown["detail"]) == {"the cosine is NaN"}
        assert thrown["score"].is_nan().all()
        no_model()


def test_a_pair_without_tokens_is_rejected(tmp_path: Path, bge: Path, pair, write_shards, read, count_texts) -> None:
    bare, text = "\ufe0f\u200b\u0301", "丈三"
    rows = [pair(bare, text), pair(text, bare), pair(bare, bare + "\u200d"), pair(bare + text, text)]
    labelled = [pair(bare, text, "stsb", "sts", label=0.5), pair(text, bare, "exam", "retrieval")]
    write_shards(tmp_path, "dedup", rows + labelled)
    summary = score(tmp_path, settings(bge, -1), ONE)
    assert (summary.rejected, summary.notes["scored"]) == ({"no_tokens": 3}, 1)
    assert count_texts == [1, 1]
    thrown = read(tmp_path, "score/rejected")
    assert thrown["detail"].to_list() == [
        f"the tokenizer leaves nothing of the {sides}" for sides in ("query", "positive", "query and positive")
    ]
    assert thrown["score"].is_null().all()
    assert read(tmp_path, "score")["pair_id"].to_list() == [row["pair_id"] for row in [rows[3], *labelled]]


def test_a_model_that_can_not_be_read_is_said_once(tmp_path: Path, bge: Path, rows, write_shards) -> None:
    write_shards(tmp_path, "dedup", rows, rows)
    (bge / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no Hugging Face model with safetensors"):
        score(tmp_path, settings(bge, 0.4), ONE)
    shutil.rmtree(bge)
    with pytest.raises(ModelError, match="is not a folder"):
        score(tmp_path, settings(bge, 0.4), ONE)
