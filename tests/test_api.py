"""The public API: what it offers, that it loads nothing early, and that it does what the commands do."""

import subprocess
import sys
from pathlib import Path

import conan_embedding as conan
import numpy as np
import pytest
from conan_embedding.pipeline.corpus.catalog import QueryError
from conan_embedding.schemas.errors import ConanError, CorpusError, RecipeError
from conan_embedding.schemas.outcomes import Summary


def test_the_package_offers_its_api_and_loads_nothing_before_it_is_used() -> None:
    script = """
import sys, conan_embedding
heavy = ["torch", "polars", "duckdb", "pyarrow", "numpy", "pydantic"]
print([name for name in heavy if name in sys.modules])
print(sorted(name for name in conan_embedding.__all__ if name in dir(conan_embedding)))
conan_embedding.Corpus
print("polars" in sys.modules, callable(conan_embedding.run), "torch" in sys.modules)
import conan_embedding.cbb, conan_embedding.dhnm, conan_embedding.losses
print(sorted(conan_embedding.losses.__all__), sorted(conan_embedding.cbb.__all__), sorted(conan_embedding.dhnm.__all__))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    nothing, offered, used, modules = ended.stdout.splitlines()
    assert nothing == "[]"
    assert offered == str(sorted(conan.__all__))
    assert used == "True True False"
    for name in ("info_nce", "cosent", "matryoshka", "all_gather_with_grad", "cached_backward", "build_batch"):
        assert f"'{name}'" in modules
    for name in ("partition_texts", "cbb_loss", "start", "observe", "no_longer_hard", "advance", "easy_negatives"):
        assert f"'{name}'" in modules


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        conan.nothing  # noqa: B018


def test_a_recipe_runs_stage_by_stage(recipe: Path, tmp_path: Path) -> None:
    loaded = conan.load_recipe(recipe, ["filter.rules.query_length=7"])
    summary = conan.run_stage("ingest", tmp_path / "corpus", loaded, workers=1)
    assert isinstance(summary, Summary) and (summary.rows_in, summary.rows_out) == (3, 3)
    filtered = conan.run_stage("filter", tmp_path / "corpus", workers=1)  # by the recipe that the corpus keeps
    assert filtered.rejected == {"query_length": 1}
    corpus = conan.Corpus(tmp_path / "corpus")
    assert corpus.read("ingest").height == 3
    assert corpus.read("filter")["query"].str.len_chars().min() >= 7
    assert corpus.rejected().select("stage", "reason", "detail").rows() == [("filter", "query_length", "6 < 7")]
    assert corpus.sql("SELECT count(*) AS rows FROM filter").to_dicts() == [{"rows": 2}]
    assert repr(corpus) == f"Corpus({str(tmp_path / 'corpus')!r})"


def test_a_whole_recipe_yields_an_outcome_for_each_stage(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def run_data_stage(name: str, *_: object) -> Summary:
        ran.append(name)
        return Summary(name)

    monkeypatch.setattr("conan_embedding.workflow.run_data_stage", run_data_stage)
    outcomes = list(conan.run(conan.load_recipe(recipe), tmp_path / "corpus"))
    assert [stage for stage, _ in outcomes] == ran == ["ingest", "filter", "dedup", "score", "convert"]
    assert all(isinstance(outcome, Summary) for _, outcome in outcomes)


def test_what_is_wrong_is_said(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no stage is called 'filtre'; did you mean 'filter'"):
        conan.run_stage("filtre", tmp_path, conan.load_recipe(recipe))
    with pytest.raises(CorpusError):
        conan.Corpus(tmp_path / "nowhere").read("ingest")
    with pytest.raises(CorpusError, match="conan mine"):
        conan.Corpus(tmp_path).pools()
    with pytest.raises(QueryError, match="nothing_here"):
        conan.Corpus(tmp_path).read("nothing_here")
    (tmp_path / "wrong.yaml").write_text("sources: []\nminee: {}\n")
    with pytest.raises(ConanError, match=r"wrong\.yaml:2: unknown key `minee`"):
        conan.load_recipe(tmp_path / "wrong.yaml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("finetune: {layout: fused}", "it is called `cbb_partition: mixed (was fused) or per_task (was paper)` now"),
        ("finetune: {in_turn: true}", "it is called `alternate_tasks` now"),
        ("pretrain: {dimension: 8}", "it is called `projection_dim` now"),
        ("bootstrap: {training: {tensorboard: true}}", "it is called `track: [tensorboard]` now"),
        ("finetune: {tensorboard: true}", "it is called `track: [tensorboard]` now"),
        ("bootstrap: {training: {dimensions: [8]}}", "it is called `matryoshka_dims` now"),
        ("evaluate: {dimensions: [8]}", "it is called `matryoshka_dims` now"),
        ("judge: {llm: {model: m, max_tokens: 1, key_variable: KEY}}", "it is called `key_env` now"),
    ],
)
def test_an_old_key_is_told_its_new_name(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(f"{line}\n")
    with pytest.raises(RecipeError) as raised:
        conan.load_recipe(tmp_path / "recipe.yaml")
    assert str(raised.value).startswith(f"{tmp_path / 'recipe.yaml'}:1: unknown key")
    assert message in str(raised.value)


def test_an_encoder_gives_unit_vectors(tmp_path: Path) -> None:
    import pyarrow as pa
    from conan_embedding.trainer.model.bootstrap import tiny_bert

    shape = {"layers": 1, "hidden": 32, "heads": 2, "intermediate": 64, "max_length": 64}
    folder = tiny_bert(tmp_path / "tiny", texts=pa.chunked_array([["一二三四五"]]), **shape)
    encoder = conan.load_encoder(folder, max_length=16, pooling="mean")
    vectors = conan.encode(encoder, ["一二", "三"])
    assert vectors.shape == (2, 32) and vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-5)
