"""The small parts of workflow.py; whole runs are in test_train.py and the demo."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from conan_embedding import workflow
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.schemas.errors import CorpusError, RecipeError
from conan_embedding.schemas.recipe import Recipe
from conan_embedding.schemas.settings import SourcePrompts
from conan_embedding.trainer.job import TrainingError
from conan_embedding.trainer.model.bootstrap import tiny_bert
from conan_embedding.workflow import (
    _sentence_shards,
    find_trained_model,
    last_step,
    run,
    run_data_stage,
    steps,
    train,
    training_job,
)

SOURCE = {"name": "s", "files": "*.jsonl", "read": "jsonl"}


def recipe(**sections: object) -> Recipe:
    return Recipe.model_validate({"sources": [SOURCE], **sections})


def test_stages_follow_from_the_recipe() -> None:
    assert steps(recipe()) == ["ingest", "filter", "dedup", "score", "convert"]
    whole = recipe(bootstrap={}, pretrain={}, finetune={}, judge={}, evaluation=[{**SOURCE, "task": "retrieval"}])
    assert steps(whole) == [
        "ingest",
        "filter",
        "dedup",
        "bootstrap",
        "score",
        "convert",
        "pretrain",
        "mine",
        "judge",
        "finetune",
        "evaluate",
        "export",
    ]
    asked = {"server": {"model": "m"}, "budget": {"requests": 1, "tokens": 1}}
    written = {"name": "w", "format": "question_answer", "synthesize": asked}
    assert steps(recipe(sources=[SOURCE, written], bootstrap={}))[2:5] == ["dedup", "synthesize", "bootstrap"]
    assert "judge" not in steps(recipe(finetune={})) + steps(recipe(judge={}))


def test_questions_held_out_are_evaluated_on_with_the_prompts_of_their_source() -> None:
    sources = [SOURCE | {"instruction": "Find it"}]
    held_out = recipe(sources=sources, holdout={}, evaluation=[SOURCE | {"name": "e", "instruction": "Find e"}])
    assert steps(held_out)[-1] == steps(recipe(holdout={}))[-1] == "evaluate"
    own = {"s": SourcePrompts(instruction="Find it"), "e": SourcePrompts(instruction="Find e")}
    assert held_out.set_prompts == own
    assert recipe(sources=sources).set_prompts == {}


def test_a_stage_that_the_recipe_lacks_is_said(tmp_path: Path) -> None:
    for stage in ("bootstrap", "pretrain", "finetune"):
        with pytest.raises(RecipeError, match=stage):
            train(stage, tmp_path, recipe(), 1)


def test_models_of_the_corpus_are_places_in_it(tmp_path: Path) -> None:
    (tmp_path / "train" / "pretrain" / "model").mkdir(parents=True)
    assert find_trained_model(tmp_path, "pretrain") == str(tmp_path / "train" / "pretrain" / "model")
    assert find_trained_model(tmp_path, "BAAI/bge-large-zh-v1.5") == "BAAI/bge-large-zh-v1.5"
    with pytest.raises(CorpusError, match="--stage bootstrap"):
        find_trained_model(tmp_path, "untrained")


def test_a_corpus_may_have_no_sentence_pairs(tmp_path: Path) -> None:
    folder = tmp_path / "convert" / "sts"
    with pytest.raises(CorpusError, match="run `conan convert"):
        _sentence_shards(tmp_path)
    (folder / "rejected").mkdir(parents=True)
    assert _sentence_shards(tmp_path) == []
    (folder / ".incomplete").touch()
    with pytest.raises(CorpusError, match="interrupted"):
        _sentence_shards(tmp_path)
    (folder / ".incomplete").unlink()
    (folder / "part-00000.parquet").touch()
    assert _sentence_shards(tmp_path) == [folder / "part-00000.parquet"]


def test_fine_tuning_wants_pools(tmp_path: Path) -> None:
    for kind in ("retrieval", "sts"):
        (tmp_path / "convert" / kind).mkdir(parents=True)
        (tmp_path / "convert" / kind / "part-00000.parquet").touch()
    with pytest.raises(CorpusError, match="conan mine"):
        train("finetune", tmp_path, recipe(finetune={}), 1)


def test_the_last_step_are_those_of_the_last_step(tmp_path: Path) -> None:
    assert last_step(tmp_path, "pretrain") == {}
    log = tmp_path / "train" / "pretrain" / "log.jsonl"
    log.parent.mkdir(parents=True)
    lines = [{"event": "start"}, *({"step": step, "loss": 1 / step} for step in range(1, 40)), {"event": "end"}]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert last_step(tmp_path, "pretrain") == {"step": 39, "loss": 1 / 39}


@pytest.mark.parametrize("stage", ["bootstrap", "pretrain", "finetune"])
def test_loss_terms_are_checked_before_any_work(stage: str, tmp_path: Path) -> None:
    terms = {"loss_terms": {"nobody_has_it": 1.0}}
    sections = {stage: {"training": terms} if stage == "bootstrap" else terms}
    with pytest.raises(RecipeError, match=f"{stage}.*loss_terms: no loss term is called 'nobody_has_it'"):
        next(run(tmp_path, recipe(**sections), Engine(1), 1))
    with pytest.raises(RecipeError, match=r"sources\.0\.read: .*'jsnol'.*'jsonl'"):
        next(run(tmp_path, Recipe.model_validate({"sources": [{**SOURCE, "read": "jsnol"}]}), Engine(1), 1))
    with pytest.raises(RecipeError, match=r"mine\.method: no mining method is called 'topk-best'"):
        next(run(tmp_path, recipe(mine={"method": "topk-best"}), Engine(1), 1))
    with pytest.raises(RecipeError, match=r"mine\.index: FAISS can't read 'IVF4096Flat'"):
        next(run(tmp_path, recipe(mine={"index": "IVF4096Flat"}), Engine(1), 1))
    with pytest.raises(RecipeError, match=r"finetune\.distill\.loss: no distillation loss is called 'lk'.*'kl'"):
        next(run(tmp_path, recipe(finetune={"distill": {"temperature": 1, "loss": "lk"}}), Engine(1), 1))
    assert list(tmp_path.iterdir()) == []


def test_stages_that_do_not_fit_together_are_refused_before_any_work(tmp_path: Path) -> None:
    sections = {"finetune": {"model": "pretrain"}, "sources": [{**SOURCE, "task": "retrieval"}]}
    with pytest.raises(RecipeError, match=r"finetune\.model: names the model of pretrain, but there is no `pretrain:`"):
        next(run(tmp_path, recipe(**sections), Engine(1), 1))
    sections["finetune"] = {"model": "m", "distill": {"temperature": 1}}
    with pytest.raises(RecipeError, match=r"finetune\.distill: there are no judgements to learn from"):
        next(run(tmp_path, recipe(**sections), Engine(1), 1))
    assert list(tmp_path.iterdir()) == []


def test_stored_judgements_can_be_learnt_without_a_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be of an earlier run, or copied from another corpus."""
    (tmp_path / "judgements").mkdir()
    (tmp_path / "judgements" / "1.parquet").touch()
    monkeypatch.setattr(workflow, "run_data_stage", lambda step, *_: step)
    given = recipe(sources=[{**SOURCE, "task": "retrieval"}], finetune={"model": "m", "distill": {"temperature": 1}})
    assert next(run(tmp_path, given, Engine(1), 1)) == ("ingest", "ingest")


def test_widths_beyond_the_models_are_refused_before_mining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_bert(tmp_path / "model", texts=pa.chunked_array([["怎么泡茶"]]), hidden=32)
    ran: list[str] = []
    monkeypatch.setattr(workflow, "run_data_stage", lambda step, *_: ran.append(step))
    given = recipe(
        sources=[{**SOURCE, "task": "retrieval"}], finetune={"model": str(model), "matryoshka_dims": [16, 64]}
    )
    with pytest.raises(TrainingError, match=r"have 32 dimensions, but finetune\.matryoshka_dims lists 64"):
        list(run(tmp_path, given, Engine(1), 1))
    assert ran == ["ingest", "filter", "dedup", "score", "convert"]


def test_stages_get_the_prompts_of_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = recipe(sources=[SOURCE | {"instruction": "Find it"}, SOURCE | {"name": "t"}])
    monkeypatch.setattr("conan_embedding.pipeline.corpus.catalog.rebuild", lambda corpus: None)
    for stage in ("score", "mine"):
        monkeypatch.setattr(f"conan_embedding.pipeline.{stage}.stage.{stage}", lambda *arguments: arguments[3:])
        assert run_data_stage(stage, tmp_path, given, Engine()) == ({"s": SourcePrompts(instruction="Find it")},)


def test_training_gets_the_prompts_of_sources_and_of_evaluation_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"evaluation": [SOURCE | {"name": "e", "prompts": {"query": ""}}], "pretrain": {"model": "m"}}
    given = recipe(sources=[SOURCE | {"instruction": "Find it"}], **own)
    monkeypatch.setattr("conan_embedding.pipeline.corpus.folder.shards", lambda *_: [])
    monkeypatch.setattr("conan_embedding.trainer.job.make_job", lambda *_, **prompts: prompts)
    expected = {
        "source_prompts": {"s": SourcePrompts(instruction="Find it")},
        "set_prompts": {"e": SourcePrompts(query="")},
        "query_only_sources": [],
    }
    assert training_job("pretrain", tmp_path, given) == expected


def test_finetuning_gets_the_sources_with_negatives_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [SOURCE, SOURCE | {"name": "t", "task": "classification", "query_only_negatives": True}]
    given = recipe(sources=sources, finetune={"model": "m"})
    monkeypatch.setattr("conan_embedding.pipeline.corpus.folder.shards", lambda *_: [])
    monkeypatch.setattr("conan_embedding.pipeline.corpus.pools.decided_fingerprint", lambda _: "pools")
    monkeypatch.setattr("conan_embedding.pipeline.corpus.pools.read_judging", lambda _: None)
    monkeypatch.setattr("conan_embedding.trainer.job.make_job", lambda *_, query_only_sources, **__: query_only_sources)
    assert training_job("finetune", tmp_path, given) == ["t"]


def test_other_scores_to_learn_make_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conan_embedding.pipeline.corpus.folder.shards", lambda *_: [])
    monkeypatch.setattr("conan_embedding.pipeline.corpus.pools.decided_fingerprint", lambda _: "pools")
    monkeypatch.setattr("conan_embedding.pipeline.corpus.pools.read_judging", lambda _: None)
    monkeypatch.setattr(
        "conan_embedding.trainer.data.teacher_scores.fingerprint_scores", lambda _, judge: f" by {judge}"
    )
    monkeypatch.setattr("conan_embedding.trainer.job.make_job", lambda *arguments, **_: arguments[5])
    distill = {"temperature": 1, "judge": "someone"}
    assert training_job("finetune", tmp_path, recipe(finetune={"model": "m"})) == "pools"
    assert training_job("finetune", tmp_path, recipe(finetune={"model": "m", "distill": distill})) == "pools by someone"
