"""Which model is the best so far. test_train_options.py tests what validation computes."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conan_embedding.schemas.errors import CorpusError
from conan_embedding.schemas.settings import SourcePrompts
from conan_embedding.schemas.training_settings import PretrainSettings, Validation
from conan_embedding.trainer.evaluation.validation import BEST, best_so_far, keep_best, validation_sets
from conan_embedding.trainer.job import Job, make_job
from conan_embedding.trainer.model.embedding_model import load


def job_of(corpus: Path, tiny: Path, **validation: object) -> Job:
    return make_job(corpus, "pretrain", str(tiny), PretrainSettings(validation=Validation(**validation)), {})


def test_the_best_is_of_earlier_steps_and_the_same_sets(training_corpus: Path, tiny: Path) -> None:
    job = job_of(training_corpus, tiny, every=4, queries=20)
    assert best_so_far(job, 4) == -np.inf
    keep_best(job, 8, 0.75, *load(tiny))
    assert json.loads((job.best_folder / BEST).read_text()) == {
        "step": 8,
        "mean": 0.75,
        "sets": {"sets": [], "queries": 20},
    }
    assert best_so_far(job, 12) == 0.75
    assert best_so_far(job, 8) == -np.inf  # as in a killed run that repeats this step
    assert best_so_far(job_of(training_corpus, tiny, every=2, queries=20), 12) == 0.75
    assert best_so_far(job_of(training_corpus, tiny, every=4, queries=30), 12) == -np.inf
    assert best_so_far(job_of(training_corpus, tiny, every=4, queries=20, sets=["asked"]), 12) == -np.inf


def test_sets_have_the_prompts_of_the_recipe(training_corpus: Path, tiny: Path) -> None:
    job = job_of(training_corpus, tiny, every=4, queries=20)
    job = job.model_copy(update={"set_prompts": {"asked": SourcePrompts(instruction="Find it")}})
    prompts = {one.name: one.prompts for one in validation_sets(Job.model_validate_json(job.model_dump_json()))}
    assert prompts == {"asked": SourcePrompts(instruction="Find it"), "alike": SourcePrompts()}


def test_questions_held_out_of_the_sources_are_sets_too(training_corpus: Path, tiny: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "held out"
    (corpus / "holdout").mkdir(parents=True)
    pairs = [("retrieval", f"一丁{c}", f"一丁{c}七") for c in "万丈三"] + [("passage", "", "上下")]
    rows = [{"source": "faq", "task": task, "query": query, "positive": positive} for task, query, positive in pairs]
    pl.DataFrame(rows).write_parquet(corpus / "holdout" / "part-00000.parquet")
    (one,) = validation_sets(job_of(corpus, tiny, every=4, sets=["faq"]))
    assert (one.name, one.frame.height, set(one.passages.drop_nulls())) == (
        "faq",
        3,
        {"一丁万七", "一丁丈七", "一丁三七", "上下"},
    )
    shutil.copytree(training_corpus / "evaluation", corpus / "evaluation")
    assert [one.name for one in validation_sets(job_of(corpus, tiny, every=4))] == ["alike", "asked", "faq"]
    (corpus / "holdout" / ".incomplete").touch()
    with pytest.raises(CorpusError, match="`conan dedup` was interrupted"):
        validation_sets(job_of(corpus, tiny, every=4))
