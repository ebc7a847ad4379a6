"""The model card, parsed as the hub does, and what it says of a corpus."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from conan_embedding.schemas.prompts import Prompts
from conan_embedding.schemas.source_settings import Source
from conan_embedding.schemas.training_settings import FinetuneSettings, PretrainSettings
from conan_embedding.trainer.job import make_job
from conan_embedding.trainer.model.model_card import Stage, model_card, read_stages
from huggingface_hub import ModelCard

COLUMNS = {"source": pl.String, "category": pl.String, "rows": pl.Int64, "chinese": pl.Int64}


def source(name: str, licence: str | None = None, files: str = "x") -> Source:
    return Source.model_validate(
        {"name": name, "files": files, "read": "jsonl", "licence": licence, "category": "news"}
    )


def stage(*records: tuple[str, int, int], name: str = "pretrain", **settings: Any) -> Stage:
    rows = [(source, "news", *counts) for source, *counts in records]
    return Stage(
        name, {"matryoshka_dims": [8, 16, 64], **settings}, 30, 2, pl.DataFrame(rows, schema=COLUMNS, orient="row")
    )


def card(**changes: Any) -> str:
    facts = {
        "base": None,
        "stages": [stage(("a", 40, 40), ("b", 2, 0)), stage(("b", 5, 0), name="finetune")],
        "sources": [source("a", "CC BY-SA 4.0"), source("b", "CC BY-SA 4.0"), source("unused", "MIT")],
        "metrics": [
            {"set": "one", "metric": "ndcg@10", "value": 0.51234, "dimension": 64},
            {"set": "one", "metric": "ndcg@10", "value": 0.5, "dimension": 8},
            {"set": "two", "metric": "ndcg@10", "value": 0.25},
            {"set": "pairs", "metric": "spearman", "value": 0.75},
        ],
        "dimension": 64,
        "max_length": 128,
        "prompts": Prompts(),
        "precision": "fp16",
        "onnx": False,
        "calibrated": 0,
        "command": ["conan", "export", "corpora/zh"],
    }
    return model_card("my-model", **facts | changes)


def test_the_hub_reads_the_front_matter() -> None:
    data = ModelCard(card()).data
    assert (data.license, data.language, data.base_model, data.datasets) == ("cc-by-sa-4.0", "zh", None, None)
    assert (data.library_name, data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert data.model_name == "my-model"
    read = [(one.task_type, one.dataset_name, one.metric_type, one.metric_value) for one in data.eval_results]
    assert read == [
        ("Retrieval", "one", "ndcg_at_10", 0.5123),
        ("Retrieval", "two", "ndcg_at_10", 0.25),
        ("STS", "pairs", "cosine_spearman", 0.75),
    ]
    _, front, body = card().split("---\n", 2)
    assert set(yaml.safe_load(front)) == {
        *("language", "library_name", "license", "pipeline_tag", "tags", "model-index"),
    }
    assert body.startswith("\n# my-model\n")


def test_quantised_vectors_have_columns_but_no_place_in_the_front_matter() -> None:
    row = {"set": "one", "metric": "ndcg@10", "dimension": 64}
    stored = [row | {"precision": kind, "value": value} for kind, value in (("float32", 0.5), ("int8", 0.25))]
    text = card(metrics=[*stored, row | {"precision": "binary", "value": 0.125, "dimension": 8}])
    assert [one.metric_value for one in ModelCard(text).data.eval_results] == [0.5]
    assert "| set | metric | 8 binary | 64 int8 | 64 |" in text
    assert "| one | ndcg@10 | 0.1250 | 0.2500 | 0.5000 |" in text
    assert "|  | bytes per vector | 1 | 64 | 256 |" in text


def test_without_metrics_there_is_no_model_index() -> None:
    text = card(metrics=[])
    assert "model-index" not in text and "my-model" in text and "## Evaluation" not in text


@pytest.mark.parametrize(
    ("licences", "base", "expected"),
    [
        (("MIT", "MIT"), None, "mit"),
        (("MIT", "Apache-2.0"), None, "other"),
        (("MIT", None), None, "other"),
        (("for research", "for research"), None, "other"),
        (("MIT; text copyright CCTV", "MIT; text copyright CCTV"), None, "other"),
        (("MIT", "MIT"), "BAAI/bge-small-zh-v1.5", "other"),
    ],
)
def test_a_licence_is_claimed_where_all_agree(licences: tuple[str, str], base: str | None, expected: str) -> None:
    found = ModelCard(card(sources=[source("a", licences[0]), source("b", licences[1])], base=base)).data
    assert found.license == expected
    assert found.base_model == base


def test_a_source_that_is_not_in_the_recipe_any_more_has_no_licence() -> None:
    text = card(sources=[source("a", "MIT")])
    assert ModelCard(text).data.license == "other"
    assert "| b | news | not declared | 2 | 5 |" in text


def test_what_is_not_known_is_not_said() -> None:
    data = ModelCard(card(base="/srv/models/bert", stages=[stage(("a", 10, 5))])).data
    assert data.base_model is None and data.language is None
    assert "started from `bert`." in card(base="/srv/models/bert") and "/srv" not in card(base="/srv/models/bert")
    assert "started from random weights." in card()
    lost = Stage("pretrain", {"matryoshka_dims": [64]}, 1, 1, None)
    text = card(stages=[lost, stage(("b", 5, 0), name="finetune")])
    assert "| source | category | licence | finetune |" in text
    assert "The records of pretrain are no longer in the corpus." in text


def test_datasets_of_the_hub_are_named() -> None:
    sources = [source("a", files="hf://datasets/owner/set@main/data/*.parquet"), source("b", files="https://x/y.csv")]
    assert ModelCard(card(sources=sources)).data.datasets == ["owner/set"]


def test_the_body_says_how_to_use_it_and_where_it_comes_from() -> None:
    text = card(prompts=Prompts("查：", "文："), onnx=True)
    for part in (
        "the first 128 tokens of a text as a vector of 64 dimensions. Compare vectors by cosine similarity.",
        "Vectors may be truncated to a width of 8, 16 (Matryoshka",
        "It needs the prompts `查：` before queries, which `encode_query` adds, `文：` before passages",
        "weights are fp16",
        'SentenceTransformer("my-model", truncate_dim=16)',
        "`sentence_embedding` [texts, 64]",
        "| a | news | CC BY-SA 4.0 | 40 | 0 |\n| b | news | CC BY-SA 4.0 | 2 | 5 |\n| all |  |  | 42 | 5 |",
        "### finetune\n\n30 steps on 2 processes.\n\n```yaml\nmatryoshka_dims: [8, 16, 64]\n```",
        "| set | metric | 8 | 64 |",
        "| one | ndcg@10 | 0.5000 | 0.5123 |\n| two | ndcg@10 |  | 0.2500 |",
        "```sh\nconan export corpora/zh\n```",
    ):
        assert part in text
    assert "unused" not in text
    assert ModelCard(text).data.tags[-2:] == ["onnx", "transformers.js"]
    assert "onnx" not in card() and "It needs no prompts." in card()
    assert "not trained further" in card(stages=[], base="BAAI/bge-small-zh-v1.5")


def test_a_table_survives_what_stands_in_it() -> None:
    assert "| a | news | MIT \\| or not |" in card(sources=[source("a", "MIT | or\nnot")])


def run(corpus: Path, name: str, model: str, settings: Any, shards: dict[str, list[Path]], world_size: int) -> None:
    """Write the files that a run of a stage leaves behind."""
    job = make_job(corpus, name, model, settings, shards)
    job.model_folder.mkdir(parents=True)
    job.file.write_text(job.model_dump_json())
    start = {"event": "start", "steps": settings.steps, "world_size": world_size}
    (job.folder / "log.jsonl").write_text(json.dumps(start) + '\n{"step": 10, "loss": 1.0}\n')


def test_stages_are_read_from_what_they_left(training_corpus: Path, tiny: Path, tmp_path: Path) -> None:
    kinds = ("pretrain", "retrieval", "sts")
    found = {kind: sorted((training_corpus / "convert" / kind).glob("*.parquet")) for kind in kinds}
    run(training_corpus, "pretrain", str(tiny), PretrainSettings(steps=7), {"pairs": found["pretrain"]}, 2)
    begun = training_corpus / "train" / "pretrain" / "model"
    shutil.copytree(tiny, begun, dirs_exist_ok=True)
    both = {"retrieval": found["retrieval"], "sts": found["sts"]}
    run(training_corpus, "finetune", str(begun), FinetuneSettings(steps=3), both, 1)

    stages, base = read_stages(training_corpus, "finetune")
    assert base == str(tiny)
    assert [(one.name, one.steps, one.processes) for one in stages] == [("pretrain", 7, 2), ("finetune", 3, 1)]
    assert stages[0].settings["batch_size"] == 8 and stages[1].settings["beta"] == 0.8
    records = [one.records.sort("source") for one in stages if one.records is not None]
    assert records[0].rows() == [("a", "news", 33, 33), ("b", "news", 7, 7)]
    assert records[1].rows() == [("big", "news", 30, 30), ("small", "news", 10, 10), ("sts", "news", 30, 30)]
    assert read_stages(training_corpus, "pretrain")[0][0].name == "pretrain"
    assert read_stages(training_corpus, "untrained") == ([], None)

    moved = tmp_path / "moved"
    training_corpus.rename(moved)
    again, base = read_stages(moved, "finetune")
    assert base == str(tiny) and [one.name for one in again] == ["pretrain", "finetune"]
    assert again[1].records is not None and again[1].records.sort("source").equals(records[1])
    shutil.rmtree(moved / "convert" / "retrieval")
    assert read_stages(moved, "finetune")[0][1].records is None


def test_sentence_pairs_that_no_update_has_are_not_counted(training_corpus: Path, tiny: Path) -> None:
    shards = {kind: sorted((training_corpus / "convert" / kind).glob("*.parquet")) for kind in ("retrieval", "sts")}
    run(training_corpus, "finetune", str(tiny), FinetuneSettings(steps=3, sts_batch=0), shards, 1)
    records = read_stages(training_corpus, "finetune")[0][0].records
    assert records is not None and sorted(records["source"]) == ["big", "small"]


def test_of_earlier_stages_only_pairs_that_are_trained_on_count(
    training_corpus: Path, tiny: Path, tmp_path: Path
) -> None:
    rows = [
        ("s", "news", task, text)
        for task in ("pretrain", "retrieval", "sts", "passage")
        for text in ("山", "mountain", "山のうえ")
    ]
    folder = training_corpus / "dedup"
    folder.mkdir()
    frame = pl.DataFrame(rows, schema=["source", "category", "task", "query"], orient="row")
    frame.with_columns(pl.col("task").cast(pl.Categorical)).write_parquet(folder / "part-00000.parquet")
    run(training_corpus, "bootstrap", str(tiny), PretrainSettings(steps=3, on="dedup"), {}, 1)
    job = training_corpus / "train" / "bootstrap" / "job.json"
    content = json.loads(job.read_text()) | {
        "shards": {"pairs": [str(training_corpus / "dedup" / "part-00000.parquet")]}
    }
    job.write_text(json.dumps(content))
    records = read_stages(training_corpus, "bootstrap")[0][0].records
    assert records is not None and records.rows() == [("s", "news", 6, 2)]


def test_a_card_names_no_folder_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "own").mkdir(parents=True)
    known = stage(("a", 40, 40))
    settings = known.settings | {"validation": {"sets": [f"{tmp_path}/own.jsonl", "../b.jsonl", "questions"]}}
    command = [
        "conan",
        "export",
        str(tmp_path / "zh"),
        "--model",
        "BAAI/bge-small-zh",
        "--set",
        f"export.folder='{tmp_path}/out'",
    ]
    text = card(base="models/own", stages=[replace(known, settings=settings)], command=command)
    assert str(tmp_path) not in text and "models/own" not in text and ".." not in text
    assert "sets: [own.jsonl, b.jsonl, questions]" in text
    assert "```sh\nconan export zh --model BAAI/bge-small-zh --set export.folder=out\n```" in text
    assert "base_model" not in text and "Training started from `own`." in text
