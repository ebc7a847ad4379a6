"""Evaluation sets are read with the sources, into a folder of their own."""

from pathlib import Path

import pytest
from conan_embedding.pipeline.corpus import folder as folders
from conan_embedding.pipeline.corpus.saved_recipe import load_recipe
from conan_embedding.pipeline.ingest import stage
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.schemas.recipe import Recipe
from ingested import ALONE, faultless, frames, lines


def test_evaluation_sets(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(
        lines({"q": "问", "p": "答", "k": 1}, {"q": None, "p": "答"}, {"q": "左", "p": "右", "k": 9})
    )
    (tmp_path / "more.jsonl").write_text(lines({"q": "别问", "p": "别答", "k": 2}, {"p": "只答", "k": 3}))
    one = {
        "name": "test",
        "task": "retrieval",
        "files": f"{tmp_path}/test.jsonl",
        "passages": f"{tmp_path}/more.jsonl",
        "read": "jsonl",
        "query": "q",
        "positive": "p",
        "where": "k IS NULL OR k = 1",  # of the questions; all passages are searched
        "meta": "{'k': k}",
    }
    sources = [faultless(tmp_path)]
    stage.ingest(tmp_path / "corpus", Recipe.model_validate({"sources": sources, "evaluation": [one]}), ALONE)
    pairs, rejects = frames(tmp_path / "corpus", "evaluation")
    assert pairs.select("source", "task", "query", "positive", "meta").rows() == [
        ("test", "retrieval", "问", "答", '{"k":1}'),
        ("test", "passage", "", "别答", '{"k":2}'),
        ("test", "passage", "", "只答", '{"k":3}'),
    ]
    assert rejects["reason"].to_list() == ["no_query"]
    (tmp_path / "test.jsonl").write_text(lines({"p": "答"}))
    barren = stage.ingest(tmp_path / "corpus", Recipe.model_validate({"sources": sources, "evaluation": [one]}), ALONE)
    assert barren.empty_sources == ["test: no pair in its files; evaluation/rejected says why"]
    assert frames(tmp_path / "corpus", "ingest")[0]["source"].to_list() == ["faultless"]
    stage.ingest(tmp_path / "corpus", Recipe.model_validate({"sources": sources}), ALONE)
    assert folders.committed(tmp_path / "corpus", "evaluation") == []  # the recipe no longer has any


def test_types_of_evaluation_sets_are_decided_before_any_work_and_kept(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(lines({"q": ["甲"], "p": "一"}))
    one = {"name": "test", "files": f"{tmp_path}/test*.jsonl", "read": "jsonl", "query": "q[1]", "positive": "p"}
    recipe = Recipe.model_validate({"sources": [faultless(tmp_path)], "evaluation": [one]})
    stage.ingest(tmp_path / "corpus", recipe, ALONE)
    assert load_recipe(tmp_path / "corpus").evaluation[0].columns == {"q": "VARCHAR[]", "p": "VARCHAR"}
    (tmp_path / "test_more.jsonl").write_text(lines(*[{"q": "乙", "p": "二"}] * 3))
    summary = stage.ingest(tmp_path / "corpus", recipe, ALONE)
    assert frames(tmp_path / "corpus", "evaluation")[1]["reason"].to_list() == ["column_type"] * 3
    assert summary.notes["kept_types"][0].startswith("test: the column q stays VARCHAR[]")
    (tmp_path / "test_more.jsonl").write_text(lines({"q": "乙", "p": "二"}))
    with pytest.raises(RecipeError, match="source test: the column q is mixed"):
        stage.ingest(tmp_path / "other", recipe, ALONE)
    assert not (tmp_path / "other").exists()
