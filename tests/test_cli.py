"""The command line: what it says and with which code it ends, through `main()` as the console script calls it."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from conan_embedding.cli import app
from conan_embedding.pipeline.corpus import load_recipe, locked, read_footer
from conan_embedding.pipeline.engine import Engine, Summary
from conan_embedding.pipeline.rules import RULES
from conan_embedding.run import data_stage
from conan_embedding.schemas.recipe import Recipe, load
from typer.testing import CliRunner

COMMANDS = [
    "ingest", "filter", "dedup", "score", "convert", "mine", "train",
    "evaluate", "export", "run", "sql", "sample", "report", "demo",
]  # fmt: skip
HEAVY = ["torch", "ray", "faiss", "deepspeed", "transformers"]
RECIPE = """\
sources:
  - name: web
    format: question_answer
    files: {folder}/*.jsonl
    read: jsonl
    query: question
    positive: answer
"""
RECORDS = [
    ("北京的秋天为什么适合旅行？", "秋天的北京天气晴朗，香山的红叶正红，是一年里最适合出门的季节。"),
    ("怎样才能学好数学这门功课？", "多做练习，把每一个概念弄懂，遇到不会的题目先自己想一想再去问老师。"),
    ("长城有多长？", "根据国家文物局的测量，历代长城的总长度超过两万一千公里。"),
]

Conan = Callable[..., tuple[int, str, str]]


def write_recipe(folder: Path) -> Path:
    """A recipe of one clean source, and its data."""
    lines = (json.dumps({"question": query, "answer": positive}, ensure_ascii=False) for query, positive in RECORDS)
    (folder / "data").mkdir()
    (folder / "data" / "qa.jsonl").write_text("\n".join(lines), "utf-8")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder / "data"), "utf-8")
    return folder / "recipe.yaml"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus after ingest and filter."""
    folder = tmp_path_factory.mktemp("filtered")
    settings = load(write_recipe(folder))
    for stage in ("ingest", "filter"):
        data_stage(stage, folder / "corpus", settings, Engine(workers=1))
    return folder / "corpus"


@pytest.fixture
def corpus(filtered: Path, tmp_path: Path) -> Path:
    """A copy of it, for one test alone."""
    return Path(shutil.copytree(filtered, tmp_path / "corpus"))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a data stage or a training stage is called with, instead of running it."""
    called: dict[str, Any] = {}

    def data_stage(name: str, corpus: Path, recipe: Any, engine: Any) -> Any:
        called.update(name=name, recipe=recipe, workers=engine.workers, address=engine.address)
        raise InterruptedError("only looking")

    def train(stage: str, corpus: Path, recipe: Any, processes: int) -> Any:
        called.update(name=stage, recipe=recipe, processes=processes)
        raise InterruptedError("only looking")

    monkeypatch.setattr("conan_embedding.run.data_stage", data_stage)
    monkeypatch.setattr("conan_embedding.run.train", train)
    return called


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help(command: str | None) -> None:
    result = CliRunner().invoke(app, [command, "--help"] if command else ["--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output
    if command is None:
        assert all(name in result.output for name in COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    script = f"""
import sys
sys.argv = ["conan", "--help"]
from conan_embedding.cli import main
try:
    main()
except SystemExit:
    print("loaded:", [name for name in {HEAVY} + ["polars", "duckdb", "pydantic"] if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("loaded: []\n")


def test_data_stages_without_a_model_import_no_torch(recipe: Path, tmp_path: Path) -> None:
    script = f"""
import sys
sys.argv = ["conan", "ingest", {str(tmp_path / "corpus")!r}, "--recipe", {str(recipe)!r}, "--workers", "1", "--json"]
from conan_embedding.cli import main
try:
    main()
except SystemExit as ended:
    print("loaded:", [name for name in {HEAVY} if name in sys.modules], ended.code)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("loaded: [] 0\n"), result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["score", "--cutoff", "0.25"], {"score.cutoff": 0.25}),
        (["score", "--model", "a: b"], {"score.model": "a: b"}),  # no YAML of it
        (["score", "--model", "2024"], {"score.model": "2024"}),
        (["mine", "--model", "bootstrap", "--method", "topk"], {"mine.model": "bootstrap", "mine.method": "topk"}),
        (["filter", "--set", "filter.rules.han_ratio=0.2", "--set", "filter.mask=false"],
         {"filter.rules": {"han_ratio": 0.2}, "filter.mask": False}),
        (["train", "--stage", "pretrain", "--on", "dedup"], {"pretrain.on": "dedup"}),
        (["train", "--stage", "bootstrap", "--on", "filter"], {"bootstrap.training.on": "filter"}),
        (["train", "--model", "bootstrap", "--set", "finetune.beta=0"], {"finetune.model": "bootstrap",
                                                                         "finetune.beta": 0.0}),
    ],
)  # fmt: skip
def test_options_are_overrides_of_the_recipe(
    conan: Conan, corpus: Path, seen: dict[str, Any], arguments: list[str], expected: dict[str, Any]
) -> None:
    command, *options = arguments
    code, _, error = conan(command, corpus, *options)
    assert (code, error) == (1, "error: only looking\n")
    for key, value in expected.items():
        found = seen["recipe"]
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value


def test_score_keeps_its_options_in_the_corpus(
    conan: Conan, corpus: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[str, float, int]] = []

    def data_stage(name: str, corpus: Path, recipe: Recipe, engine: Engine) -> Summary:
        used.append((recipe.score.model, recipe.score.cutoff, recipe.score.max_length))
        if recipe.score.cutoff == 0.9:
            raise InterruptedError("no such model")
        return Summary(name)

    monkeypatch.setattr("conan_embedding.run.data_stage", data_stage)
    before = load_recipe(corpus)
    assert conan("score", corpus, "--cutoff", 0.25, "--set", "score.max_length=64")[0] == 0
    assert load_recipe(corpus) == before.model_copy(update={"score": before.score.model_copy(update={"cutoff": 0.25})})
    assert conan("score", corpus, "--model", "here: it is")[0] == 0
    assert conan("score", corpus, "--cutoff", 0.9)[0] == 1  # what was not done is not kept
    assert conan("score", corpus, "--set", "score.cutoff=0.7")[0] == 0
    assert conan("score", corpus, "--recipe", recipe, "--cutoff", 0.5)[0] == 0
    assert conan("score", corpus)[0] == 0
    default = before.score.model
    assert used == [
        (default, 0.25, 64),
        ("here: it is", 0.25, 512),
        ("here: it is", 0.9, 512),
        ("here: it is", 0.7, 512),
        (default, 0.5, 512),
        ("here: it is", 0.5, 512),
    ]
    (corpus / "recipe.yaml").unlink()
    assert conan("score", corpus, "--recipe", recipe, "--cutoff", 0.5)[0] == 0
    assert not (corpus / "recipe.yaml").exists()


def test_numbers_of_processes(conan: Conan, corpus: Path, seen: dict[str, Any]) -> None:
    conan("dedup", corpus, "--workers", 3)
    assert (seen["name"], seen["workers"]) == ("dedup", 3)
    conan("train", corpus, "--nproc", 2)
    assert (seen["name"], seen["processes"]) == ("finetune", 2)


@pytest.mark.parametrize("command", ["ingest", "filter", "dedup", "score", "convert", "run"])
def test_engines(conan: Conan, corpus: Path, seen: dict[str, Any], command: str) -> None:
    place = [corpus / "recipe.yaml", corpus] if command == "run" else [corpus]
    for options, address in [
        ([], None),
        (["--engine", "local"], None),
        (["--engine", "ray"], "auto"),
        (["--engine", "ray", "--address", "head:6379"], "head:6379"),
    ]:
        assert conan(command, *place, *options)[0] == 1
        assert seen.pop("address") == address
    code, _, error = conan(command, *place, "--address", "head:6379")
    assert code == 2
    assert "--address" in error
    assert "--engine ray" in error
    assert "address" not in seen


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
def test_bad_usage_ends_with_2(conan: Conan, corpus: Path, arguments: list[str]) -> None:
    code, _, error = conan(arguments[0], corpus, *arguments[1:])
    assert code == 2
    assert arguments[1] in error
    assert "Traceback" not in error


def test_json_is_one_object_a_stage(conan: Conan, corpus: Path) -> None:
    code, output, _ = conan("ingest", corpus, "--json", "--workers", 1)
    assert code == 0
    assert json.loads(output) | {"seconds": 0} == {
        "stage": "ingest", "rows_in": 3, "rows_out": 3, "rejected": {}, "shards": 1, "skipped": 1, "seconds": 0,
        "notes": {"empty sources": [], "absent columns": [], "left out by where": {}},
    }  # fmt: skip


def test_a_summary_has_rows_in_out_and_rejected_for_each_reason(conan: Conan, corpus: Path) -> None:
    code, output, _ = conan("filter", corpus, "--set", "filter.rules.query_length=10", "--workers", 1)
    assert code == 0
    words = output.replace("│", " ").split()
    assert " ".join(words[words.index("in") :]).startswith("in 3 rejected: query_length 1 out 2")


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_explain_prints_every_rule_of_one_pair(conan: Conan, corpus: Path) -> None:
    before = files(corpus)
    found = json.loads(conan("sql", corpus, "SELECT pair_id FROM ingest WHERE query = '长城有多长？'", "--json")[1])
    code, output, _ = conan(
        "filter", corpus, "--explain", found["pair_id"][:10], "--set", "filter.rules.query_length=7"
    )
    assert code == 0
    assert "长城有多长？" in output and "rejected: query_length (6 < 7)" in output
    assert all(rule.name in output for rule in RULES)
    code, output, _ = conan("filter", corpus, "--explain", found["pair_id"], "--json")
    told = json.loads(output)
    assert (told["reason"], len(told["findings"])) == (None, len(RULES))
    assert conan("filter", corpus, "--explain", "0" * 32)[0] == 1
    assert files(corpus) == before


def test_a_dry_run_tells_what_rules_would_drop_and_writes_nothing(conan: Conan, corpus: Path) -> None:
    before = files(corpus)
    code, output, _ = conan("filter", corpus, "--dry-run", "--set", "filter.rules.query_length=10")
    assert code == 0
    assert "3 of 3 pairs: 2 kept, 1 rejected; nothing written" in output
    assert "query_length 6 < 10" in output and "query: 长城有多长？" in output
    code, output, _ = conan("filter", corpus, "--dry-run", "--sample", 2, "--json")
    assert json.loads(output) | {"rules": []} == {
        "corpus_rows": 3, "rows": 2, "kept": 2, "rejected": 0, "rules": [],
    }  # fmt: skip
    assert conan("filter", corpus, "--dry-run", "--sample", 0)[0] == 2
    assert files(corpus) == before


def test_a_sample_is_a_corpus(conan: Conan, corpus: Path, tmp_path: Path) -> None:
    code, output, _ = conan("sample", corpus, tmp_path / "small", "--rows", 2, "--json")
    assert code == 0
    assert [json.loads(line)["stage"] for line in output.splitlines()][:2] == ["ingest", "filter"]
    assert json.loads(conan("sql", tmp_path / "small", "SELECT count(*) AS n FROM filter", "--json")[1]) == {"n": 2}
    assert conan("filter", tmp_path / "small", "--workers", 1)[0] == 0
    code, _, error = conan("sample", corpus, tmp_path / "small")
    assert code != 0 and str(tmp_path / "small") in error.replace("\n", "")


def test_sql_prints_a_table(conan: Conan, corpus: Path) -> None:
    code, output, _ = conan("sql", corpus, "SELECT '[/b] :cat:' AS text, NULL AS nothing, 1 AS a, 2 AS a FROM ingest")
    assert code == 0
    assert output.count("[/b] :cat:") == 3
    assert [cell.strip() for cell in output.splitlines()[1].strip("┃").split("┃")] == ["text", "nothing", "a", "a_1"]
    assert [cell.strip() for cell in output.splitlines()[3].strip("│").split("│")] == ["[/b] :cat:", "", "1", "2"]


def test_sql_as_json_is_one_object_a_row(conan: Conan, corpus: Path) -> None:
    code, output, _ = conan(
        "sql", corpus, "SELECT query, CAST('nan' AS FLOAT) AS score, [1, 2] AS list FROM filter ORDER BY 1", "--json"
    )
    assert code == 0
    assert [json.loads(line) for line in output.splitlines()] == [
        {"query": query, "score": None, "list": [1, 2]} for query in sorted(query for query, _ in RECORDS)
    ]


def test_sql_touches_nothing_in_the_corpus(conan: Conan, corpus: Path) -> None:
    def places() -> dict[Path, int]:
        return {place: place.stat().st_mtime_ns for place in [corpus, *corpus.rglob("*")]}

    with locked(corpus):  # a stage that runs meanwhile is in nobody's way
        before = places()
        assert conan("sql", corpus, "FROM runs")[0] == 0
        assert places() == before


def test_broken_sql_gives_the_databases_message(conan: Conan, corpus: Path) -> None:
    code, _, error = conan("sql", corpus, "SELECT queri FROM ingest")
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
        ("dedup", "dedup.decontaminate=[lost]", ["dedup.decontaminate: lost is neither an evaluation set", "none"]),
        ("dedup", "dedup.recall=1", ["dedup.recall", "less than or equal to 0.9999", "found 1"]),
        ("score", "score.cutoff=7", ["score.cutoff", "less than or equal to 1", "found 7"]),
    ],
)
def test_a_mistake_in_the_recipe_ends_with_2(
    conan: Conan, corpus: Path, command: str, override: str, says: list[str]
) -> None:
    code, _, error = conan(command, corpus, "--set", override)
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
    conan: Conan, corpus: Path, command: str, first: str, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    options = ["--model", tmp_path / "model"] if command == "score" else []
    code, _, error = conan(command, corpus, *options)
    assert code == 1
    assert f"run `conan {first} {corpus}` first" in error


def test_show_prints_a_pool(conan: Conan, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conan_embedding.pipeline.inspect_pools import ShownPool

    assert f"run `conan mine {corpus}` first" in conan("mine", corpus, "--show", "7")[2]
    pool = ShownPool(
        query_id=7,
        query="哪里\n有[/b]茶？",
        run={"method": "topk-percpos", "margin": 0.95, "top_k": 1, "passages": 2000},
        ceiling=0.8,
        positives=[{"passage_id": 3, "score": 0.84, "text": "山里"}],
        passages=[
            {"place": 0, "rank": None, "passage_id": 3, "score": 0.84, "verdict": "own positive", "text": "山里"},
            {"place": 1, "rank": 0, "passage_id": 5, "score": 0.5, "verdict": "kept", "text": "海" * 300},
        ],
        dropped={"own positive": 1},
    )
    asked: list[Any] = []
    monkeypatch.setattr(
        "conan_embedding.pipeline.inspect_pools.show_pool", lambda *wanted: asked.append(wanted) or pool
    )
    code, printed, _ = conan("mine", corpus, "--show", "哪里", "--model", "/m", "--json")
    assert (code, json.loads(printed)) == (0, asdict(pool))
    assert (asked[0][:2], asked[0][2].model) == ((corpus, "哪里"), "/m")
    code, printed, _ = conan("mine", corpus, "--show", "7")
    assert code == 0
    for part in ("query 7: 哪里 有[/b]茶？", "below 0.8000", "positive 0.8400: 山里", "kept (rank 0)", "own positive"):
        assert part in printed
    assert "dropped: 1 own positive" in printed
    assert not (corpus / "pools.duckdb").exists()


def test_a_model_that_is_not_trained_names_the_command(conan: Conan, corpus: Path) -> None:
    code, _, error = conan("export", corpus)
    assert code == 1
    assert f"run `conan train {corpus} --stage finetune` first" in error


def test_a_model_that_does_not_exist(conan: Conan, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, error = conan("score", corpus, "--model", "nobody/no-such-model")
    assert code == 1
    assert error.startswith("error: nobody/no-such-model is no folder here and can't be had from the Hugging Face hub")
    assert error.count("\n") == 1


def test_a_corpus_in_use_names_its_owner(conan: Conan, corpus: Path) -> None:
    with locked(corpus):
        code, _, error = conan("filter", corpus, "--workers", 1)
    assert code == 1
    assert f"{corpus} is in use by process {os.getpid()}" in error
    with (corpus / ".lock").open() as lock:  # and it is free again
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_debug_shows_the_traceback_and_keeps_the_code(conan: Conan, corpus: Path) -> None:
    for option, shown in (("--workers=1", False), ("--debug", True)):
        code, _, error = conan("filter", corpus, "--set", "filter.rules.han=1", option)
        assert code == 2
        assert ("Traceback" in error) is shown
        assert error.endswith("the nearest is 'han_ratio'\n")


def test_an_unforeseen_error_names_its_kind(conan: Conan, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conan_embedding.run.data_stage", lambda *_: {}["gone"])
    code, _, error = conan("filter", corpus)
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
    assert f"name the folder there or on the command line: conan run {recipe} FOLDER" in error


def test_train_wants_a_stage_that_there_is(conan: Conan, corpus: Path) -> None:
    code, _, error = conan("train", corpus, "--stage", "warmup")
    assert code == 2
    assert "expected one of bootstrap, pretrain, finetune" in error
    code, _, error = conan("train", corpus, "--stage", "bootstrap")
    assert code == 2
    assert "the recipe has no `bootstrap:`" in error


def test_report_writes_a_page(conan: Conan, corpus: Path, tmp_path: Path) -> None:
    code, output, _ = conan("report", corpus, "--to", tmp_path / "page.html")
    assert code == 0
    assert str(tmp_path / "page.html") in output.replace("\n", "")
    assert "<html" in (tmp_path / "page.html").read_text("utf-8")
    assert conan("report", corpus)[0] == 0
    assert (corpus / "report.html").exists()


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
