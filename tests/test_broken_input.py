"""Broken input, end to end: each kind is reported with file, line and reason, and the rest of the data is read."""

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

PAIRS = [
    ("北京的秋天为什么适合旅行？", "秋天的北京天气晴朗，香山的红叶正红，是一年里最适合出门的季节。"),
    ("怎样才能学好数学这门功课？", "多做练习，把每一个概念弄懂，遇到不会的题目先自己想一想再去问老师。"),
    ("长城有多长？", "根据国家文物局的测量，历代长城的总长度超过两万一千公里。"),
]
CLEAN = {"name": "clean", "files": "${root}/clean.jsonl", "read": "jsonl"}

Conan = Callable[..., tuple[int, str, str]]


def lines(pairs: Sequence[tuple[str, str]]) -> bytes:
    records = (json.dumps({"query": query, "positive": positive}, ensure_ascii=False) for query, positive in pairs)
    return "".join(record + "\n" for record in records).encode()


def link_to_nothing(path: Path) -> None:
    path.symlink_to("/nowhere/at-all.jsonl")


def half_of_gzip(path: Path) -> None:
    """Cut in the middle; what comes before the cut can still be read."""
    packed = gzip.compress(lines(PAIRS * 2000))
    path.write_bytes(packed[: len(packed) // 2])


@dataclass(frozen=True)
class Damage:
    """A file that is read along with a good one of the same source, and the expected report."""

    file: str
    write: Callable[[Path], object]
    reason: str
    detail: str = ""
    line: int | None = None
    pairs: int | None = 3  # of the source, those of its good file included; None where it is open how many
    source: dict[str, Any] = field(default_factory=dict)


DAMAGES = {
    "truncated gzip": Damage("b.jsonl.gz", half_of_gzip, "truncated", "ends early, after", pairs=None),
    "no gzip at all": Damage(
        "b.jsonl.gz", lambda path: path.write_bytes(b"\0hello"), "truncated", "compressed as its name"
    ),
    "GB18030 declared as UTF-8": Damage(
        "b.jsonl",
        lambda path: path.write_bytes(lines(PAIRS).decode().encode("gb18030")),
        "encoding",
        "it looks like gb18030",
        source={"encoding": "utf-8"},
    ),
    "a broken line": Damage(
        "b.jsonl",
        lambda path: path.write_bytes(lines(PAIRS[:1]) + b'{"query": "x", "posi\n' + lines(PAIRS[1:])),
        "broken_json",
        line=2,
        pairs=6,
    ),
    "NUL bytes": Damage(
        "b.jsonl", lambda path: path.write_bytes(lines(PAIRS[:2]) + b"\0" * 20 + b"\n"), "nul_bytes", line=3, pairs=5
    ),
    "an empty query": Damage(
        "b.jsonl", lambda path: path.write_bytes(b'{"positive": "only"}\n' + lines(PAIRS)), "no_query", line=1, pairs=6
    ),
    "a link to nothing": Damage("b.jsonl", link_to_nothing, "unreadable", "FileNotFoundError"),
    "a folder": Damage("b.jsonl", Path.mkdir, "unreadable", "IsADirectoryError"),
}


def write_recipe(folder: Path, *sources: dict[str, Any]) -> Path:
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "clean.jsonl").write_bytes(lines(PAIRS))
    recipe = {"variables": {"root": str(folder / "data")}, "sources": [*sources, CLEAN]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    return folder / "recipe.yaml"


def ask(conan: Conan, corpus: Path, sql: str) -> list[dict[str, Any]]:
    code, output, error = conan("sql", corpus, sql, "--json")
    assert code == 0, error
    return [json.loads(line) for line in output.splitlines()]


def pairs_by_source(conan: Conan, corpus: Path) -> dict[str, int]:
    return {
        row["source"]: row["n"] for row in ask(conan, corpus, "SELECT source, count(*) AS n FROM ingest GROUP BY 1")
    }


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_is_named_and_the_rest_goes_on(conan: Conan, tmp_path: Path, kind: str) -> None:
    damage, corpus = DAMAGES[kind], tmp_path / "corpus"
    (tmp_path / "data" / "dirty").mkdir(parents=True)
    (tmp_path / "data" / "dirty" / "a.jsonl").write_bytes(lines(PAIRS))
    damage.write(tmp_path / "data" / "dirty" / damage.file)
    source = {"name": "dirty", "files": "${root}/dirty/*.jsonl*", "read": "jsonl"}
    recipe = write_recipe(tmp_path, source | damage.source)

    code, output, _ = conan("ingest", corpus, "--recipe", recipe, "--workers", 1)
    assert code == 0
    assert f"rejected: {damage.reason}" in output
    assert conan("ingest", corpus, "--workers", 1, "--strict")[0] == 3

    rejected = ask(conan, corpus, "SELECT file, line, reason, detail, source FROM rejected WHERE stage = 'ingest'")
    found = [row for row in rejected if row["reason"] == damage.reason]
    assert [(row["file"], row["line"], row["source"]) for row in found] == [
        (str(tmp_path / "data" / "dirty" / damage.file), damage.line, "dirty")
    ]
    assert damage.detail in found[0]["detail"]
    pairs = pairs_by_source(conan, corpus)
    assert pairs["clean"] == 3
    assert pairs["dirty"] == damage.pairs or (damage.pairs is None and pairs["dirty"] > 3)


@pytest.mark.parametrize(
    ("broken", "column"),
    [
        ({"query": "titel"}, "titel"),
        ({"select": "unnest(videos) AS v"}, "videos"),
        ({"positive": "no_function(1)"}, ""),
    ],
)
def test_sql_that_does_not_fit_the_files(conan: Conan, tmp_path: Path, broken: dict[str, str], column: str) -> None:
    corpus = tmp_path / "corpus"
    source = {"name": "dirty", "files": "${root}/dirty.jsonl", "read": "jsonl"} | broken
    recipe = write_recipe(tmp_path, source)
    (tmp_path / "data" / "dirty.jsonl").write_bytes(lines(PAIRS[:2]))

    code, output, _ = conan("ingest", corpus, "--recipe", recipe, "--workers", 1)
    assert code == 0
    assert "dirty: no pair in its files" in output
    assert conan("ingest", corpus, "--workers", 1, "--strict")[0] == 3

    rejected = ask(conan, corpus, "SELECT line, reason, detail, record FROM rejected ORDER BY line")
    assert [(row["line"], row["reason"]) for row in rejected] == [(1, "projection"), (2, "projection")]
    assert column in rejected[0]["detail"]
    assert "Available columns: query, positive" in rejected[0]["detail"]
    assert json.loads(rejected[0]["record"])["query"] == PAIRS[0][0]
    assert pairs_by_source(conan, corpus) == {"clean": 3}


def test_an_empty_folder_is_told(conan: Conan, tmp_path: Path) -> None:
    (tmp_path / "data" / "empty").mkdir(parents=True)
    recipe = write_recipe(tmp_path, {"name": "nothing", "files": "${root}/empty/*.jsonl", "read": "jsonl"})
    code, output, _ = conan("ingest", tmp_path / "corpus", "--recipe", recipe, "--workers", 1)
    assert code == 0
    assert f"nothing: no file matches {tmp_path}/data/empty/*.jsonl" in output.replace("\n", "")
    assert conan("ingest", tmp_path / "corpus", "--workers", 1, "--strict")[0] == 3
    assert pairs_by_source(conan, tmp_path / "corpus") == {"clean": 3}


def test_files_without_a_pair_are_told(conan: Conan, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"name": "hollow", "files": "${root}/hollow.jsonl", "read": "jsonl"})
    (tmp_path / "data" / "hollow.jsonl").write_bytes(b"")
    code, output, _ = conan("ingest", tmp_path / "corpus", "--recipe", recipe, "--workers", 1, "--json")
    assert code == 0
    hollow = tmp_path / "data" / "hollow.jsonl"
    assert json.loads(output)["empty_sources"] == [f"hollow: no file but skipped ones matches {hollow}"]
    assert json.loads(output)["notes"]["skipped_files"] == [f"hollow: 1 empty, such as {hollow}"]
    hollow.write_bytes(b"{}")
    code, output, _ = conan("ingest", tmp_path / "corpus", "--recipe", recipe, "--workers", 1, "--json")
    assert json.loads(output)["empty_sources"] == ["hollow: no pair in its files; ingest/rejected says why"]


def test_a_source_of_which_every_file_is_skipped_ends_with_2(conan: Conan, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    (tmp_path / "data" / "clean.jsonl").write_bytes(b"")
    code, _, error = conan("ingest", tmp_path / "corpus", "--recipe", recipe)
    assert code == 2
    assert f"Skipped: clean: 1 empty, such as {tmp_path}/data/clean.jsonl" in error


def test_no_file_at_all_ends_with_2(conan: Conan, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    (tmp_path / "data" / "clean.jsonl").unlink()
    code, _, error = conan("ingest", tmp_path / "corpus", "--recipe", recipe)
    assert code == 2
    assert f"clean looks for {tmp_path}/data/clean.jsonl" in error
    assert "Traceback" not in error


def test_damage_does_not_stop_the_stages_after(conan: Conan, tmp_path: Path) -> None:
    """Also a stage whose input has no row at all, of a source that gave none."""
    recipe = write_recipe(tmp_path, {"name": "hollow", "files": "${root}/hollow.jsonl", "read": "jsonl"})
    (tmp_path / "data" / "hollow.jsonl").write_bytes(b"{}\n{\n")
    corpus = tmp_path / "corpus"
    for stage in ("ingest", "filter", "dedup"):
        options = ["--recipe", recipe] if stage == "ingest" else []
        code, _, error = conan(stage, corpus, *options, "--workers", 1)
        assert code == 0, error
    runs = ask(conan, corpus, "SELECT folder, sum(rows_in)::INT AS n, sum(rows_out)::INT AS o FROM runs GROUP BY 1")
    assert {row["folder"]: (row["n"], row["o"]) for row in runs} == {
        "ingest": (5, 3),
        "filter": (3, 3),
        "dedup": (3, 3),
    }
