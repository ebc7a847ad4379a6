"""Evaluations of models and corpora, and the metrics that a corpus keeps of them."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conan_embedding import evaluation
from conan_embedding.cli import app
from conan_embedding.evaluation import _keep_metrics
from conan_embedding.pipeline.corpus import catalog
from conan_embedding.pipeline.encoder.encoder import dimension, load_encoder
from conan_embedding.pipeline.encoder.model_folder import ModelError
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.schemas.outcomes import Evaluated
from conan_embedding.schemas.recipe import Recipe
from conan_embedding.schemas.settings import EncoderSettings
from conan_embedding.trainer.evaluation.evaluate import judge
from conan_embedding.trainer.evaluation.evaluation_sets import read_sets
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from typer.testing import CliRunner


def test_evaluations_that_end_at_once_keep_all_metrics(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    rows = [
        {"model": f"model {number}", "dimension": 8, "set": "s", "metric": "m", "value": 0.5} for number in range(40)
    ]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda row: _keep_metrics(file, [row], {"s": "1"}), rows))
    kept = json.loads(file.read_text("utf-8"))
    assert sorted(row["model"] for row in kept) == sorted(row["model"] for row in rows)
    _keep_metrics(file, [{**rows[3], "model": "model 3@4", "dimension": 4, "value": 0.7}], {"s": "1"})
    replaced = [row for row in json.loads(file.read_text("utf-8")) if row["model"].startswith("model 3@")]
    assert [row["value"] for row in replaced] == [0.7]


def test_only_retrieval_sets_are_searched_quantised(evaluation_corpus: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"evaluate": {"quantize": ["int8", "binary"], "matryoshka_dims": [8]}})
    other = tmp_path / "other.jsonl"
    other.write_text('{"text_a": "一丁", "text_b": "七万", "label": 1}\n{"text_a": "丈", "text_b": "三", "label": 0.5}')
    with pytest.raises(RecipeError, match=r"only retrieval sets are searched .* but none is among other"):
        evaluation.evaluate(None, recipe, ["no model is loaded"], [other])
    with pytest.raises(RecipeError, match="mteb searches float32 vectors"):
        evaluation.evaluate_cmteb(None, recipe, ["no model is loaded"], [])
    rows = evaluation.evaluate(evaluation_corpus, recipe, ["pretrain"], []).metrics
    named = {(row["model"], row["dimension"], row["precision"], row["bytes_per_vector"]): None for row in rows}
    assert list(named) == [
        ("pretrain", 32, "float32", 128), ("pretrain int8", 32, "int8", 32), ("pretrain binary", 32, "binary", 4),
        ("pretrain@8", 8, "float32", 32), ("pretrain@8 int8", 8, "int8", 8), ("pretrain@8 binary", 8, "binary", 1),
        ("bm25", None, None, None),
    ]  # fmt: skip
    asked = "SELECT dimension, precision, count(*) FROM results WHERE model = 'pretrain' GROUP BY ALL ORDER BY ALL"
    assert [tuple(row.values()) for row in catalog.query(evaluation_corpus, asked).to_pylist()] == [
        (8, "binary", 5), (8, "float32", 5), (8, "int8", 5), (32, "binary", 5), (32, "float32", 5), (32, "int8", 5),
    ]  # fmt: skip
    evaluation.evaluate(evaluation_corpus, Recipe(), ["pretrain"], [])
    kept = json.loads((evaluation_corpus / "evaluation" / "metrics.json").read_text())
    assert {row["model"] for row in kept} == {"pretrain", "bm25"}
    shown = CliRunner().invoke(
        app, ["evaluate", str(evaluation_corpus), "pretrain", "--quantize", "binary", "--recipe", "/dev/null"]
    )
    assert "bytes/vector" in shown.output, shown.output
    assert re.findall(r"\d+", shown.output.partition("bytes/vector")[2]) == ["128", "4"]


def test_results_of_before_have_no_precision(evaluation_corpus: Path) -> None:
    evaluation.evaluate(evaluation_corpus, Recipe(), ["pretrain"], [])
    file = evaluation_corpus / "evaluation" / "results" / "pretrain.parquet"
    pl.read_parquet(file).drop("precision").write_parquet(file.with_name("a.parquet"))
    assert catalog.query(evaluation_corpus, "SELECT precision FROM results").num_rows == 15


@pytest.fixture
def evaluation_corpus(tmp_path: Path, tiny: Path) -> Path:
    """A corpus with evaluation sets only, and a model in train/pretrain."""
    folder = tmp_path / "corpus"
    (folder / "evaluation").mkdir(parents=True)
    (folder / "train" / "pretrain").mkdir(parents=True)
    (folder / "train" / "pretrain" / "model").symlink_to(tiny)
    rows = [{"query": f"一丁{c}", "positives": [f"一丁{c}七"]} for c in "万丈三上下"]
    (folder / "evaluation" / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_metrics_stay_in_the_corpus(evaluation_corpus: Path) -> None:
    recipe = Recipe.model_validate({"evaluate": {"matryoshka_dims": [8]}})
    rows = evaluation.evaluate(evaluation_corpus, recipe, ["pretrain"], []).metrics
    models = ["pretrain", "pretrain@8", "bm25"]
    assert list(dict.fromkeys(row["model"] for row in rows)) == models
    assert [row["dimension"] for row in rows[::4]] == [32, 8, None]
    file = evaluation_corpus / "evaluation" / "metrics.json"
    kept = json.loads(file.read_text())
    assert [{key: value for key, value in row.items() if key != "set_version"} for row in kept] == rows
    asked = "SELECT model, dimension, count(*), bool_and(query_id IS NOT NULL) FROM results GROUP BY ALL ORDER BY ALL"
    assert [tuple(row.values()) for row in catalog.query(evaluation_corpus, asked).to_pylist()] == [
        ("bm25", None, 5, True), ("pretrain", 8, 5, True), ("pretrain", 32, 5, True),
    ]  # fmt: skip
    file.write_text(json.dumps([{**kept[0], "model": "other"}, *kept]))
    evaluation.evaluate(evaluation_corpus, Recipe(), ["pretrain"], [])
    kept = [row["model"] for row in json.loads(file.read_text())]
    assert list(dict.fromkeys(kept)) == [
        "other",
        "pretrain",
        "bm25",
    ]  # the rows of truncated vectors, from the first run, are gone
    models = catalog.query(evaluation_corpus, "SELECT DISTINCT model FROM results ORDER BY 1")
    assert models["model"].to_pylist() == ["bm25", "pretrain"]


def test_metrics_on_other_records_are_not_kept(evaluation_corpus: Path) -> None:
    file, own = evaluation_corpus / "evaluation" / "metrics.json", evaluation_corpus / "evaluation" / "own.jsonl"
    (evaluation_corpus / "train" / "finetune").symlink_to(evaluation_corpus / "train" / "pretrain")

    def evaluate(model: str) -> set[str]:
        evaluation.evaluate(evaluation_corpus, Recipe(), [model], [])
        found = {row["model"] for row in json.loads(file.read_text())}
        assert set(catalog.query(evaluation_corpus, "SELECT model FROM results")["model"].to_pylist()) == found
        return found

    assert evaluate("pretrain") == {"pretrain", "bm25"}
    assert evaluate("finetune") == {"pretrain", "finetune", "bm25"}
    own.write_text("\n".join(own.read_text().splitlines()[1:]))
    assert evaluate("finetune") == {"finetune", "bm25"}


def test_a_corpus_without_metrics_has_no_results(evaluation_corpus: Path) -> None:
    assert catalog.query(evaluation_corpus, "SELECT query, ndcg_10, passages FROM results").num_rows == 0


def test_other_sets_leave_the_corpus_as_it_is(evaluation_corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"text_a": "一丁", "text_b": "七万", "label": 1}\n{"text_a": "丈", "text_b": "三", "label": 0.5}')
    rows = evaluation.evaluate(evaluation_corpus, Recipe(), ["pretrain"], [other], tmp_path / "results").metrics
    assert [(row["model"], row["set"], row["metric"]) for row in rows] == [("pretrain", "other", "spearman")]
    assert not (evaluation_corpus / "evaluation" / "metrics.json").exists()
    assert not (evaluation_corpus / "evaluation" / "results").exists()
    assert pl.read_parquet(tmp_path / "results" / "pretrain.parquet")["positive"].to_list() == ["七万", "三"]


def test_progress_counts_the_sets_of_all_models_and_reaches_their_number(
    evaluation_corpus: Path, tmp_path: Path
) -> None:
    other, calls = tmp_path / "other.jsonl", []
    other.write_text('{"text_a": "一丁", "text_b": "七万", "label": 1}\n{"text_a": "丈", "text_b": "三", "label": 0.5}')
    evaluation.evaluate(
        evaluation_corpus,
        Recipe(),
        ["pretrain", "pretrain"],
        [other],
        progress=lambda *values: calls.append(values),
    )
    assert calls == [("evaluate: sets", 0, 1, 0), ("evaluate: sets", 1, 1, 0)]


def test_a_model_needs_no_corpus_and_a_recipe_is_a_place_of_sets(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text('{"q": "一丁七", "a": "一丁七万"}\n{"q": "丈三", "a": "丈三上"}\n')
    (tmp_path / "more.jsonl").write_text('{"a": "下不与"}\n')
    recipe = tmp_path / "sets.yaml"
    recipe.write_text(
        "evaluation:\n  - {name: questions, task: retrieval, files: '${root}/questions.jsonl', "
        "passages: '${root}/more.jsonl', read: jsonl, query: q, positive: a}\n"
    )
    root = [f"variables.root={tmp_path}"]
    rows = evaluation.evaluate(None, Recipe(), [str(tiny)], [recipe], overrides=root).metrics
    assert {(row["model"], row["set"]) for row in rows} == {(str(tiny), "questions"), ("bm25", "questions")}
    recipe.write_text(recipe.read_text().replace("questions.jsonl", "lost.jsonl"))
    with pytest.raises(RecipeError, match=r"the evaluation set questions has no pairs in .*lost\.jsonl"):
        evaluation.evaluate(None, Recipe(), [str(tiny)], [recipe], overrides=root)
    recipe.write_text("sources: []\n")
    with pytest.raises(RecipeError, match="no `evaluation:` section"):
        evaluation.evaluate(None, Recipe(), [str(tiny)], [recipe])


def test_the_command_takes_a_corpus_or_with_sets_a_model(
    evaluation_corpus: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(evaluation, "evaluate", lambda *given: asked.append(given) or Evaluated([]))
    (evaluation_corpus / "recipe.yaml").write_text("evaluate: {models: [pretrain], matryoshka_dims: [4]}")
    own = str(evaluation_corpus / "evaluation" / "own.jsonl")
    for arguments in (
        [str(evaluation_corpus)],
        [str(evaluation_corpus), "finetune", "--sets", own, "--matryoshka-dims", "8,16", "--quantize", "int8,binary"],
        [str(tiny), "BAAI/bge", "--sets", own, "--results", "there", "--set", "evaluate.max_length=64"],
    ):
        assert CliRunner().invoke(app, ["evaluate", *arguments]).exit_code == 0
    found = [
        (place, recipe.evaluate.matryoshka_dims, models, sets, to) for place, recipe, models, sets, to, *_ in asked
    ]
    assert found == [
        (evaluation_corpus, [4], ["pretrain"], [], None),
        (evaluation_corpus, [8, 16], ["finetune"], [Path(own)], None),
        (None, [], [str(tiny), "BAAI/bge"], [Path(own)], Path("there")),
    ]
    assert asked[2][1].evaluate.max_length == 64
    assert [recipe.evaluate.quantize for _, recipe, *_ in asked] == [[], ["int8", "binary"], []]
    wrong = CliRunner().invoke(app, ["evaluate", str(evaluation_corpus), "--quantize", "int4"])
    assert isinstance(wrong.exception, RecipeError)
    assert "Input should be 'int8' or 'binary', found 'int4'" in str(wrong.exception)
    for arguments in (["--matryoshka-dims", "all"], ["--tasks", "STSB"], ["--cmteb", "--sets", own]):
        assert CliRunner().invoke(app, ["evaluate", str(evaluation_corpus), *arguments]).exit_code == 2


@pytest.mark.parametrize("task", ["retrieval", "sts", "classification"])
def test_vectors_that_are_not_finite_are_refused(task: str, tiny: Path, tmp_path: Path) -> None:
    """One token's embedding is NaN: the texts that have it are counted and shown."""
    model = shutil.copytree(tiny, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    wrong = AutoTokenizer.from_pretrained(model).convert_tokens_to_ids("七")
    (name,) = (name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name][wrong] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    rows, kind = {
        "retrieval": ([{"query": "一", "positives": [text]} for text in ("丁", "一七", "七丁")], "2 of 3 passages"),
        "sts": ([{"text_a": text, "text_b": "丁", "label": 1} for text in ("一七", "一", "七丁")], "2 of 3 sentences"),
        "classification": (
            [{"text": f"{'一七丁'[i % 3]}七" if i in (3, 4) else "一", "label": i % 2} for i in range(12)],
            "2 of 12 texts",
        ),
    }[task]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        ModelError, match=rf"model: evaluation set own: the vectors of {kind} have NaN .* numbers: 一七; 七"
    ):
        evaluation.evaluate(None, Recipe(), [str(model)], [tmp_path / "own.jsonl"])


def test_pooling_prompts_and_trust_are_the_encoders(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "own.jsonl"
    pairs = [("一丁", "七"), ("丁七", "一七"), ("七", "一丁七"), ("丁", "丁一")]
    file.write_text("\n".join(json.dumps({"text_a": a, "text_b": b, "label": i}) for i, (a, b) in enumerate(pairs)))
    own = {"pooling": "lasttoken", "prompts": {"sentence": "七丁一"}}
    (expected,) = judge(
        load_encoder(EncoderSettings(model=str(tiny), **own)),
        read_sets([file])[0],
        [dimension(load_encoder(EncoderSettings(model=str(tiny))))],
    )
    asked = [f"evaluate.{key}={json.dumps(value)}" for key, value in own.items()]
    for arguments in (["--set", asked[0], "--set", asked[1]], ["--pooling", "lasttoken", "--set", asked[1]], []):
        done = CliRunner().invoke(
            app, ["evaluate", str(tiny), "--sets", str(file), "--results", str(tmp_path), *arguments]
        )
        assert done.exit_code == 0, done.output
        scores = pl.read_parquet(next(tmp_path.glob("*.parquet")))["score"]
        assert np.allclose(scores, expected.results["score"], atol=1e-6) == bool(arguments)
    seen: list[EncoderSettings] = []
    monkeypatch.setattr("conan_embedding.pipeline.encoder.encoder.load_encoder", seen.append)
    for options in ([], ["--trust-remote-code"]):
        CliRunner().invoke(app, ["evaluate", str(tiny), "--sets", str(file), *options])
    assert [each.trust_remote_code for each in seen] == [False, True]
