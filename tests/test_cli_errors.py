"""The command line where something is wrong: one message that says what to do, and the code it ends with."""

import fcntl
import os
from pathlib import Path

import pytest
from command_line import Conan
from conan_embedding.pipeline.corpus.folder import read_footer
from conan_embedding.pipeline.corpus.lock import locked


@pytest.mark.parametrize(
    "arguments",
    [
        ["filter", "--workers", "-1"],
        ["train", "--nproc", "0"],
        ["score", "--cutoff", "high"],
        ["filter", "--speed"],
        ["filter", "--engine", "spark"],
    ],
)
def test_bad_usage_ends_with_2(conan: Conan, filtered_corpus: Path, arguments: list[str]) -> None:
    code, _, error = conan(arguments[0], filtered_corpus, *arguments[1:])
    assert code == 2
    assert arguments[1] in error
    assert "Traceback" not in error


@pytest.mark.parametrize("corpus", ["gs://bucket/zh", "hdfs://host/zh", "hf://datasets/zh", "simplecache::s3://b/zh"])
@pytest.mark.parametrize(
    "command",
    ["ingest", "filter", "dedup", "score", "convert", "mine", "train", "evaluate", "export", "sql", "report", "sample"],
)
def test_a_corpus_can_not_be_at_any_uri(
    conan: Conan, command: str, corpus: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a path it would be a local folder named `gs:`."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    more = {"sql": ["SELECT 1"], "sample": ["out"], "train": ["--stage", "pretrain"]}.get(command, [])
    code, _, error = conan(command, corpus, *more)
    assert code == 1
    assert error.startswith(f"error: {corpus}: a corpus must be a folder on this machine, or s3://BUCKET/")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_recipe_may_not_name_any_uri_for_its_corpus(
    conan: Conan, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe.write_text(recipe.read_text("utf-8") + "corpus: gs://bucket/zh\n", "utf-8")
    for arguments in ([], ["gs://bucket/zh"]):
        code, _, error = conan("run", recipe, *arguments)
        assert code == 1
        assert error.startswith("error: gs://bucket/zh: a corpus must be a folder on this machine")
        assert not (tmp_path / "gs:").exists()


def test_broken_sql_gives_the_databases_message(conan: Conan, filtered_corpus: Path) -> None:
    code, _, error = conan("sql", filtered_corpus, "SELECT queri FROM ingest")
    assert code == 1
    assert 'column "queri" not found' in error
    assert '"query"' in error  # what DuckDB proposes
    assert "Traceback" not in error


def test_an_unknown_key_names_the_nearest_and_its_line(conan: Conan, recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text("utf-8") + "dedup:\n  treshold: 0.8\n", "utf-8")
    code, _, error = conan("ingest", tmp_path / "corpus", "--recipe", recipe)
    assert code == 2
    assert error == f"error: {recipe}:9: unknown key `dedup.treshold`; did you mean `threshold`?\n"
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize(
    ("command", "override", "says"),
    [
        ("filter", "filter.rules.han=0.2", ["no filter rule is called 'han'", "'han_ratio'"]),
        ("filter", "filter.blocked_words=/nowhere/words.txt", ["filter.blocked_words", "/nowhere/words.txt"]),
        ("filter", "filter.blocked_domains=/nowhere", ["filter.blocked_domains", "/nowhere"]),
        ("filter", "filtre.mask=true", ["unknown key `filtre`", "did you mean `filter`?"]),
        ("filter", "filter.mask", ["--set filter.mask: expected key.key=value"]),
        (
            "dedup",
            "dedup.decontaminate=[lost]",
            [
                "dedup.decontaminate: lost is neither ",
                "an evaluation set of the corpus; there is nothing to choose from",
            ],
        ),
        ("dedup", "dedup.recall=1", ["dedup.recall", "less than or equal to 0.9999", "found 1"]),
        ("score", "score.cutoff=7", ["score.cutoff", "less than or equal to 1", "found 7"]),
    ],
)
def test_a_mistake_in_the_recipe_ends_with_2(
    conan: Conan, filtered_corpus: Path, command: str, override: str, says: list[str]
) -> None:
    code, _, error = conan(command, filtered_corpus, "--set", override)
    assert code == 2
    assert all(part in error for part in says), error
    assert "Traceback" not in error


@pytest.mark.parametrize("command", ["filter", "dedup", "score", "convert", "mine", "train", "evaluate", "export"])
def test_without_a_corpus_a_stage_says_what_to_run(conan: Conan, tmp_path: Path, command: str) -> None:
    code, _, error = conan(command, tmp_path / "nothing")
    assert code == 2
    assert f"run `conan ingest {tmp_path}/nothing --recipe FILE` first" in error


@pytest.mark.parametrize(("command", "first"), [("score", "dedup"), ("convert", "score")])
def test_before_its_turn_a_stage_names_the_one_to_run(
    conan: Conan, filtered_corpus: Path, command: str, first: str, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    options = ["--model", tmp_path / "model"] if command == "score" else []
    code, _, error = conan(command, filtered_corpus, *options)
    assert code == 1
    assert f"run `conan {first} {filtered_corpus}` first" in error


def test_a_model_that_is_not_trained_names_the_command(conan: Conan, filtered_corpus: Path) -> None:
    code, _, error = conan("export", filtered_corpus)
    assert code == 1
    assert f"run `conan train {filtered_corpus} --stage finetune` first" in error


def test_a_model_that_does_not_exist(conan: Conan, filtered_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, error = conan("score", filtered_corpus, "--model", "nobody/no-such-model")
    assert code == 1
    assert error.startswith(
        "error: nobody/no-such-model is not a folder and can't be downloaded from the Hugging Face hub"
    )
    assert error.count("\n") == 1


def test_a_corpus_in_use_names_its_owner(conan: Conan, filtered_corpus: Path) -> None:
    with locked(filtered_corpus):
        code, _, error = conan("filter", filtered_corpus, "--workers", 1)
    assert code == 1
    assert f"{filtered_corpus} is in use by process {os.getpid()}" in error
    with (filtered_corpus / ".lock").open() as lock:  # and it is free again
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_debug_shows_the_traceback_and_keeps_the_code(conan: Conan, filtered_corpus: Path) -> None:
    for option, shown in (("--workers=1", False), ("--debug", True)):
        code, _, error = conan("filter", filtered_corpus, "--set", "filter.rules.han=1", option)
        assert code == 2
        assert ("Traceback" in error) is shown
        assert error.endswith("did you mean 'han_ratio'?\n")


def test_an_unforeseen_error_names_its_kind(
    conan: Conan, filtered_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conan_embedding.workflow.run_data_stage", lambda *_: {}["gone"])
    code, _, error = conan("filter", filtered_corpus)
    assert code == 1
    assert error == "error: KeyError: 'gone' (--debug shows where)\n"


def test_strict_ends_with_3_where_input_was_bad(conan: Conan, recipe: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    strict = ("ingest", corpus, "--recipe", recipe, "--workers", 1, "--strict")
    assert conan(*strict)[0] == 0
    (tmp_path / "data" / "bad.jsonl").write_text('{"question": \n', "utf-8")
    assert conan(*strict)[0] == 3
    assert conan(*strict[:-1])[0] == 0
    assert [read_footer(shard).rejected for shard in corpus.glob("ingest/part-*")] == [{"broken_json": 1}]


def test_run_wants_a_corpus_folder(conan: Conan, recipe: Path) -> None:
    code, _, error = conan("run", recipe)
    assert code == 2
    assert f"add it, or give the folder on the command line: conan run {recipe} FOLDER" in error


def test_train_wants_a_stage_that_there_is(conan: Conan, filtered_corpus: Path) -> None:
    code, _, error = conan("train", filtered_corpus, "--stage", "warmup")
    assert code == 2
    assert "expected one of bootstrap, pretrain, finetune" in error
    code, _, error = conan("train", filtered_corpus, "--stage", "bootstrap", "--model", "bert")
    assert code == 2 and "bootstrap starts from random weights" in error
    code, _, error = conan("train", filtered_corpus, "--stage", "bootstrap")
    assert code == 2
    assert "the recipe has no `bootstrap:`" in error


@pytest.mark.parametrize("command", [["sql", "FROM ingest"], ["report"]])
def test_looking_at_no_corpus(conan: Conan, tmp_path: Path, command: list[str]) -> None:
    code, _, error = conan(command[0], tmp_path / "nothing", *command[1:])
    assert code == 1
    assert str(tmp_path / "nothing") in error
    assert not (tmp_path / "nothing").exists()


def test_demo_leaves_a_folder_with_other_things_alone(conan: Conan, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("mine", "utf-8")
    (tmp_path / "sources").mkdir()
    code, _, error = conan("demo", tmp_path)
    assert code == 2
    assert f"{tmp_path} holds something that is not a demo" in error
    assert not list((tmp_path / "sources").iterdir())
