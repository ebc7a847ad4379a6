"""The settings in which compared corpora differ."""

import json
from pathlib import Path

import pytest
from conan_embedding.pipeline.corpus.saved_recipe import save_recipe
from conan_embedding.pipeline.report.differences import render_differences
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.schemas.recipe import Recipe
from report_pages import render, rows_of

SOURCE = {"name": "faq", "category": "web_page", "format": "question_answer", "files": ["a.csv"], "read": "csv"}


def test_settings_that_differ_are_listed(tmp_path: Path, pair, write_shards) -> None:
    corpora = [tmp_path / name for name in ("first", "second")]
    recipes = [
        Recipe(sources=[SOURCE], score={"cutoff": 0.5}, finetune={}, variables={"root": "/a"}),
        Recipe(sources=[SOURCE | {"files": ["<b>.csv"]}, SOURCE | {"name": "more"}], finetune={}),
    ]
    for corpus, recipe in zip(corpora, recipes, strict=True):
        write_shards(corpus, "dedup", [pair("问题", "答案")])
        save_recipe(corpus, recipe)
    run = json.loads(recipes[1].finetune.model_dump_json()) | {"learning_rate": 0.25}
    (corpora[1] / "train" / "finetune").mkdir(parents=True)
    (corpora[1] / "train" / "finetune" / "job.json").write_text(json.dumps({"settings": run}))  # `--set` of the run
    rows = rows_of(render(render_differences, *corpora), "Settings that differ")
    learning_rate = recipes[0].finetune.learning_rate
    assert rows[:3] == [
        ["score.cutoff", "0.5", "0.4"],
        ["finetune.learning_rate", f"{learning_rate}", "0.25"],
        ["sources.faq.files", "[&quot;a.csv&quot;]", "[&quot;&lt;b&gt;.csv&quot;]"],
    ]
    assert [row[:2] for row in rows[3:]] == [["sources.more", "–"]]


def test_equal_settings_are_said_and_a_broken_recipe_is_refused(tmp_path: Path, pair, write_shards) -> None:
    corpora = [tmp_path / name for name in ("first", "second")]
    for corpus in corpora:
        write_shards(corpus, "dedup", [pair("问题", "答案")])
    assert "Settings that differ</h2><p>None.</p>" in render(render_differences, *corpora)
    (corpora[1] / "recipe.yaml").write_text("score: [")
    with pytest.raises(RecipeError, match="not valid YAML"):
        render(render_differences, *corpora)
