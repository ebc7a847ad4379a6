"""The command line: what it says and with which code it ends, through `main()` as the console script calls it."""

import csv
import io
import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from command_line import RECORDS, Conan
from conan_embedding.pipeline.corpus.lock import locked
from conan_embedding.pipeline.corpus.saved_recipe import load_recipe
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.filter.rules import RULES
from conan_embedding.schemas.outcomes import Summary
from conan_embedding.schemas.recipe import Recipe
from conan_embedding.show_outcome import show_outcome

HEAVY = ["torch", "ray", "faiss", "deepspeed", "transformers"]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the stages with functions that record their arguments; return these."""
    called: dict[str, Any] = {}

    def data_stage(name: str, corpus: Path, recipe: Any, engine: Any) -> Any:
        called.update(name=name, recipe=recipe, workers=engine.workers, address=engine.address)
        raise InterruptedError("only looking")

    def train(stage: str, corpus: Path, recipe: Any, processes: int) -> Any:
        called.update(name=stage, recipe=recipe, processes=processes)
        raise InterruptedError("only looking")

    monkeypatch.setattr("conan_embedding.workflow.run_data_stage", data_stage)
    monkeypatch.setattr("conan_embedding.workflow.train", train)
    return called


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
    conan: Conan, filtered_corpus: Path, seen: dict[str, Any], arguments: list[str], expected: dict[str, Any]
) -> None:
    command, *options = arguments
    code, _, error = conan(command, filtered_corpus, *options)
    assert (code, error) == (1, "error: only looking\n")
    for key, value in expected.items():
        found = seen["recipe"]
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value


def test_score_keeps_its_options_in_the_corpus(
    conan: Conan, filtered_corpus: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[str, float, int]] = []

    def data_stage(name: str, filtered_corpus: Path, recipe: Recipe, engine: Engine) -> Summary:
        used.append((recipe.score.model, recipe.score.cutoff, recipe.score.max_length))
        if recipe.score.cutoff == 0.9:
            raise InterruptedError("no such model")
        return Summary(name)

    monkeypatch.setattr("conan_embedding.workflow.run_data_stage", data_stage)
    before = load_recipe(filtered_corpus)
    assert conan("score", filtered_corpus, "--cutoff", 0.25, "--set", "score.max_length=64")[0] == 0
    assert load_recipe(filtered_corpus) == before.model_copy(
        update={"score": before.score.model_copy(update={"cutoff": 0.25})}
    )
    assert conan("score", filtered_corpus, "--model", "here: it is")[0] == 0
    assert conan("score", filtered_corpus, "--cutoff", 0.9)[0] == 1  # what was not done is not kept
    assert conan("score", filtered_corpus, "--set", "score.cutoff=0.7")[0] == 0
    assert conan("score", filtered_corpus, "--recipe", recipe, "--cutoff", 0.5)[0] == 0
    assert conan("score", filtered_corpus)[0] == 0
    default = before.score.model
    assert used == [
        (default, 0.25, 64),
        ("here: it is", 0.25, 512),
        ("here: it is", 0.9, 512),
        ("here: it is", 0.7, 512),
        (default, 0.5, 512),
        ("here: it is", 0.5, 512),
    ]
    (filtered_corpus / "recipe.yaml").unlink()
    assert conan("score", filtered_corpus, "--recipe", recipe, "--cutoff", 0.5)[0] == 0
    assert not (filtered_corpus / "recipe.yaml").exists()


def test_numbers_of_processes(conan: Conan, filtered_corpus: Path, seen: dict[str, Any]) -> None:
    conan("dedup", filtered_corpus, "--workers", 3)
    assert (seen["name"], seen["workers"]) == ("dedup", 3)
    conan("train", filtered_corpus, "--nproc", 2)
    assert (seen["name"], seen["processes"]) == ("finetune", 2)


@pytest.mark.parametrize("command", ["ingest", "filter", "dedup", "score", "convert", "run"])
def test_engines(conan: Conan, filtered_corpus: Path, seen: dict[str, Any], command: str) -> None:
    place = [filtered_corpus / "recipe.yaml", filtered_corpus] if command == "run" else [filtered_corpus]
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


def test_json_is_one_object_a_stage(conan: Conan, filtered_corpus: Path) -> None:
    code, output, _ = conan("ingest", filtered_corpus, "--json", "--workers", 1)
    assert code == 0
    assert json.loads(output) | {"seconds": 0} == {
        "stage": "ingest", "rows_in": 3, "rows_out": 3, "rejected": {}, "shards": 1, "skipped": 1, "seconds": 0,
        "notes": {"kept_types": [], "globs_without_files": [], "skipped_files": [], "absent_columns": [],
                  "left_out_by_where": {}},
        "empty_sources": [], "bad_input": False,
    }  # fmt: skip


def test_ingest_dry_run_shows_sources_and_writes_nothing(conan: Conan, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"q": "问", "a": ["答"]}\n{"q": "怪"}\n')
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"sources: [{{name: web, files: {tmp_path}/a.jsonl, read: jsonl, query: q, positive: 'a[1]'}}]", "utf-8"
    )
    code, output, _ = conan("ingest", tmp_path / "corpus", "--recipe", recipe, "--dry-run")
    assert code == 0
    words = output.replace("│", " ").split()
    assert "q VARCHAR a VARCHAR[]" in " ".join(words)
    assert "query: 问" in output and "positive: 答" in output
    assert f"rejected: no_positive 1, first {tmp_path}/a.jsonl, line 2" in output
    (source,) = json.loads(conan("ingest", tmp_path / "corpus", "--recipe", recipe, "--dry-run", "--json")[1])
    assert (source["name"], source["columns"], source["kept"]) == ("web", {"q": "VARCHAR", "a": "VARCHAR[]"}, 1)
    assert not (tmp_path / "corpus").exists()


def test_a_summary_has_rows_in_out_and_rejected_for_each_reason(conan: Conan, filtered_corpus: Path) -> None:
    code, output, _ = conan("filter", filtered_corpus, "--set", "filter.rules.query_length=10", "--workers", 1)
    assert code == 0
    words = output.replace("│", " ").split()
    assert " ".join(words[words.index("in") :]).startswith("in 3 rejected: query_length 1 out 2")


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_explain_prints_every_rule_of_one_pair(conan: Conan, filtered_corpus: Path) -> None:
    before = files(filtered_corpus)
    found = json.loads(
        conan("sql", filtered_corpus, "SELECT pair_id FROM ingest WHERE query = '长城有多长？'", "--json")[1]
    )
    code, output, _ = conan(
        "filter", filtered_corpus, "--explain", found["pair_id"][:10], "--set", "filter.rules.query_length=7"
    )
    assert code == 0
    assert "长城有多长？" in output and "rejected: query_length (6 < 7)" in output
    assert all(name in output for name in RULES)
    code, output, _ = conan("filter", filtered_corpus, "--explain", found["pair_id"], "--json")
    told = json.loads(output)
    assert (told["reason"], len(told["findings"])) == (None, len(RULES))
    assert conan("filter", filtered_corpus, "--explain", "0" * 32)[0] == 1
    assert files(filtered_corpus) == before


def test_a_dry_run_tells_what_rules_would_drop_and_writes_nothing(conan: Conan, filtered_corpus: Path) -> None:
    before = files(filtered_corpus)
    code, output, _ = conan("filter", filtered_corpus, "--dry-run", "--set", "filter.rules.query_length=10")
    assert code == 0
    assert "3 of 3 pairs: 2 kept, 1 rejected; nothing written" in output
    assert "query_length 6 < 10" in output and "query: 长城有多长？" in output
    code, output, _ = conan("filter", filtered_corpus, "--dry-run", "--sample", 2, "--json")
    assert json.loads(output) | {"rules": []} == {
        "corpus_rows": 3, "rows": 2, "kept": 2, "rejected": 0, "rules": [],
    }  # fmt: skip
    assert conan("filter", filtered_corpus, "--dry-run", "--sample", 0)[0] == 2
    assert files(filtered_corpus) == before


def test_a_sample_is_a_corpus(conan: Conan, filtered_corpus: Path, tmp_path: Path) -> None:
    code, output, _ = conan("sample", filtered_corpus, tmp_path / "small", "--rows", 2, "--json")
    assert code == 0
    assert [json.loads(line)["stage"] for line in output.splitlines()][:2] == ["ingest", "filter"]
    assert json.loads(conan("sql", tmp_path / "small", "SELECT count(*) AS n FROM filter", "--json")[1]) == {"n": 2}
    assert conan("filter", tmp_path / "small", "--workers", 1)[0] == 0
    code, _, error = conan("sample", filtered_corpus, tmp_path / "small")
    assert code != 0 and str(tmp_path / "small") in error.replace("\n", "")


def test_sql_prints_a_table(conan: Conan, filtered_corpus: Path) -> None:
    code, output, _ = conan(
        "sql", filtered_corpus, "SELECT '[/b] :cat:' AS text, NULL AS nothing, 1 AS a, 2 AS a FROM ingest"
    )
    assert code == 0
    assert output.count("[/b] :cat:") == 3
    assert [cell.strip() for cell in output.splitlines()[1].strip("┃").split("┃")] == ["text", "nothing", "a", "a_1"]
    assert [cell.strip() for cell in output.splitlines()[3].strip("│").split("│")] == ["[/b] :cat:", "", "1", "2"]


def test_sql_as_json_is_one_object_a_row(conan: Conan, filtered_corpus: Path) -> None:
    code, output, _ = conan(
        "sql",
        filtered_corpus,
        "SELECT query, CAST('nan' AS FLOAT) AS score, [1, 2] AS list, sum(2) AS total, [0.5] AS shares "
        "FROM filter GROUP BY query ORDER BY 1",
        "--json",
    )
    assert code == 0
    assert [json.loads(line) for line in output.splitlines()] == [
        {"query": query, "score": None, "list": [1, 2], "total": 2, "shares": [0.5]}
        for query in sorted(query for query, _ in RECORDS)
    ]


def test_sql_as_csv_is_what_csv_readers_read(conan: Conan, filtered_corpus: Path) -> None:
    values = {"text": """'a "b",\nc'""", "empty": "''", "nothing": "NULL", "list": "[1, 2]", "number": "7",
              "struct": "{'k': 0.5::DOUBLE}", "bytes": "'x'::BLOB"}  # fmt: skip
    select = ", ".join(f"{value} AS {name}" for name, value in values.items())
    code, output, _ = conan("sql", filtered_corpus, f"SELECT {select} FROM filter", "--csv", "--limit", 2)
    assert code == 0
    header, *found = csv.reader(io.StringIO(output))
    assert header == list(values)
    assert found == [['a "b",\nc', "", "", "[1,2]", "7", '{"k":0.5}', '"eA=="']] * 2
    assert "not with --json" in conan("sql", filtered_corpus, "FROM filter", "--csv", "--json")[2]


def test_sql_in_a_pipe_folds_no_cell(conan: Conan, filtered_corpus: Path) -> None:
    _, output, _ = conan("sql", filtered_corpus, "SELECT repeat('长', 300) AS long, 1 AS one FROM filter LIMIT 1")
    assert [cell.strip() for cell in output.splitlines()[3].strip("│").split("│")] == ["长" * 300, "1"]


def test_sql_prints_as_many_rows_as_the_limit(conan: Conan, filtered_corpus: Path) -> None:
    numbers = "SELECT unnest(range(5)) AS n ORDER BY n DESC"
    for limit, expected in (("3", [4, 3, 2]), ("0", []), ("9", [4, 3, 2, 1, 0])):
        output = conan("sql", filtered_corpus, numbers, "--limit", limit, "--json")[1]
        assert [json.loads(line)["n"] for line in output.splitlines()] == expected


def test_a_stage_that_takes_long_tells_a_pipe_how_far_it_is(
    conan: Conan, filtered_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import conan_embedding.pipeline.filter.stage as stage

    judge = stage.filter_shard

    def judge_slowly(*arguments: Any) -> None:
        judge(*arguments)
        time.sleep(0.1)

    monkeypatch.setattr("conan_embedding.pipeline.engine.progress_lines.SECONDS", 0.02)
    monkeypatch.setattr(stage, "filter_shard", judge_slowly)
    code, output, error = conan(
        "filter", filtered_corpus, "--workers", 1, "--json", "--set", "filter.rules.han_ratio=0.01"
    )
    assert code == 0 and json.loads(output)["rows_in"] == 3
    assert error.splitlines()[0].startswith("filter: 0 of 1, ") and error.splitlines()[0].endswith(" so far")


def test_notes_of_a_summary_are_read_by_people(capsys: pytest.CaptureFixture[str]) -> None:
    notes = {"left_out_by_where": {"forum": 1_234, "news": 2}, "absent_columns": ["news: no file has x"], "queries": 7}
    show_outcome(Summary("ingest", empty_sources=["a", "b"], notes=notes), as_json=False)
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "empty sources: a, b",
        "left out by where: forum 1,234, news 2",
        "absent columns: news: no file has x",
        "queries: 7",
    ]


def test_sql_touches_nothing_in_the_corpus(conan: Conan, filtered_corpus: Path) -> None:
    def places() -> dict[Path, int]:
        return {place: place.stat().st_mtime_ns for place in [filtered_corpus, *filtered_corpus.rglob("*")]}

    with locked(filtered_corpus):  # a stage that runs meanwhile is in nobody's way
        before = places()
        assert conan("sql", filtered_corpus, "FROM runs")[0] == 0
        assert places() == before


def test_show_prints_a_pool(conan: Conan, filtered_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conan_embedding.pipeline.mine.show_pool import ShownPool

    assert f"run `conan mine {filtered_corpus}` first" in conan("mine", filtered_corpus, "--show", "7")[2]
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
        "conan_embedding.pipeline.mine.show_pool.show_pool", lambda *wanted: asked.append(wanted) or pool
    )
    code, printed, _ = conan("mine", filtered_corpus, "--show", "哪里", "--model", "/m", "--json")
    assert (code, json.loads(printed)) == (0, asdict(pool))
    assert (asked[0][:2], asked[0][2].model) == ((filtered_corpus, "哪里"), "/m")
    code, printed, _ = conan("mine", filtered_corpus, "--show", "7")
    assert code == 0
    for part in ("query 7: 哪里 有[/b]茶？", "below 0.8000", "positive 0.8400: 山里", "kept (rank 0)", "own positive"):
        assert part in printed
    assert "dropped: 1 own positive" in printed
    assert not (filtered_corpus / "pools.duckdb").exists()


def test_report_writes_a_page(conan: Conan, filtered_corpus: Path, tmp_path: Path) -> None:
    code, output, _ = conan("report", filtered_corpus, "--to", tmp_path / "page.html")
    assert code == 0
    assert str(tmp_path / "page.html") in output.replace("\n", "")
    assert "<html" in (tmp_path / "page.html").read_text("utf-8")
    assert conan("report", filtered_corpus)[0] == 0
    assert (filtered_corpus / "report.html").exists()


def test_report_compares_corpora(conan: Conan, filtered_corpus: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(filtered_corpus, tmp_path / "other"))
    code, output, _ = conan("report", filtered_corpus, other)
    assert (code, output) == (0, f"report: {filtered_corpus / 'comparison.html'}\n")
    assert "corpus and other" in (filtered_corpus / "comparison.html").read_text("utf-8")
    code, _, error = conan("report", filtered_corpus, filtered_corpus)
    assert (code, "compared with itself" in error) == (1, True)
