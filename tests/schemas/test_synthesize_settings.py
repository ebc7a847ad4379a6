"""Sources that a language model writes: what a recipe may say, and the sentences about what it may not."""

from pathlib import Path

import pytest
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.schemas.recipe import Recipe, dump, load
from conan_embedding.schemas.stage_fit import list_models

RECIPE = """\
sources:
  - {name: laws, files: laws/*.jsonl, read: jsonl, task: retrieval}
  - name: laws_qa
    category: llm_generated
    format: question_answer
    task: retrieval
    synthesize:
      passages: {sql: "SELECT positive AS text, pair_id FROM dedup WHERE source = 'laws'", sample: 20000}
      server: {url: http://localhost:8000/v1, model: qwen, key_env: OPENAI_API_KEY, concurrency: 32, timeout: 60}
      queries: 2
      kinds: {question: 3, keyword: 1, statement: 1, comparison: 1}
      personas: auto
      language: zh
      budget: {requests: 50000, tokens: 2.0e7}
      round_trip: {model: BAAI/bge-large-zh-v1.5, within: 20}
      judge: {min: 2}
"""


def read(tmp_path: Path, text: str = RECIPE) -> Recipe:
    (tmp_path / "recipe.yaml").write_text(text, "utf-8")
    return load(tmp_path / "recipe.yaml")


def test_a_source_is_written_by_a_model(tmp_path: Path) -> None:
    recipe = read(tmp_path)
    source = recipe.sources[1]
    assert source.synthesize and source.synthesize.budget.tokens == 20_000_000
    assert source.synthesize.languages == {"zh": 1.0}
    assert not source.gives_questions and recipe.sources[0].gives_questions
    models = [(stage, place) for stage, place, _ in list_models(recipe, ["synthesize"])]
    assert models == [("synthesize", ("sources", 1, "synthesize", "round_trip", "model"))]
    assert read(tmp_path, dump(recipe)) == recipe


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("    task: retrieval\n    syn", "    files: a.jsonl\n    task: retrieval\n    syn", "remove `files:`"),
        ("    task: retrieval\n    syn", "    read: jsonl\n    task: retrieval\n    syn", "remove `read:`"),
        ("    task: retrieval\n    syn", "    where: a > 1\n    task: retrieval\n    syn", "remove `where:`"),
        ("    task: retrieval\n    syn", "    meta: '{a: 1}'\n    task: retrieval\n    syn", "remove `meta:`"),
        ("    task: retrieval\n    syn", "    priority: 1\n    task: retrieval\n    syn", "remove `priority:`"),
        ("    task: retrieval\n    syn", "    task: passage\n    syn", "expected pretrain or retrieval"),
        ("format: question_answer", "format: title_content", "expected `format: question_answer`, or another kind"),
        ("{question: 3, ", "{prompt: 3, ", "expected `format: prompt_response` or `format: input_output`"),
        ("{question: 3, ", "{questions: 3, ", "questions"),
        ("question: 3, keyword: 1, statement: 1, comparison: 1", "", "`kinds` is empty"),
        ("question: 3", "question: 0", "greater than 0"),
        ("question: 3", "translation: 3", "`kinds` has `translation` and others"),
        ("language: zh", "language: Chinese", "expected the ISO 639-1 code"),
        ("within: 20", "within: 200", "less than or equal to 100"),
        ("min: 2", "min: 4", "less than or equal to 3"),
        ("      budget: {requests: 50000, tokens: 2.0e7}\n", "", "budget: Field required"),
        ("  - {name: laws, files: laws/*.jsonl, read: jsonl, task: retrieval}\n", "", "gives the passages"),
        ("sources:\n", "evaluation:\n", "`synthesize` is for `sources`"),
    ],
)
def test_what_does_not_fit_is_told(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in RECIPE
    with pytest.raises(RecipeError, match=message.replace("(", r"\(")):
        read(tmp_path, RECIPE.replace(old, new))


def test_held_out_questions_can_be_asked_for(tmp_path: Path) -> None:
    recipe = read(tmp_path, RECIPE.replace("    category", "    holdout: true\n    category"))
    assert recipe.sources[1].gives_questions
