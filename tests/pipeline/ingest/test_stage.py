"""From sources to pairs: every row that was read becomes a pair, or a reject with a reason."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conan_embedding.pipeline.corpus.saved_recipe import load_recipe
from conan_embedding.pipeline.ingest import splits, stage
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.schemas.recipe import Recipe
from ingested import ALONE, Ingested, faultless, frames, lines


@pytest.fixture
def ingest(tmp_path: Path) -> Callable[..., Ingested]:
    """Return a function that ingests a source with one file, along with other sources."""

    def ingest(data: str, file: str = "a.jsonl", *others: dict[str, Any], **source: Any) -> Ingested:
        path = tmp_path / file
        if not path.exists() or path.read_text("utf-8") != data:  # rewriting it would make it be read again
            path.write_text(data, "utf-8")
        given = {"name": "web", "files": str(path), "read": file.rpartition(".")[2], **source}
        return Ingested(tmp_path / "corpus", Recipe.model_validate({"sources": [given, *others]}))

    return ingest


Ingest = Callable[..., Ingested]


# The projection


def test_a_pair(ingest: Ingest) -> None:
    found = ingest(
        lines(
            {"t": " 标题&amp;Ａ ", "d": {"c": "<p>正文。</p>"}, "neg": ["  别的 ", "", None], "s": 3, "u": "http://x"}
        ),
        category="news",
        format="title_content",
        task="retrieval",
        query="t",
        positive="d.c",
        negatives="neg",
        label="s / 2",
        meta="{'url': u, 'n': s}",
    )
    (pair,) = found.pairs.to_dicts()
    assert pair == {
        "pair_id": pair["pair_id"],
        "source": "web",
        "category": "news",
        "format": "title_content",
        "task": "retrieval",
        "query": "标题&A",
        "positive": "正文。",
        "negatives": ["别的"],
        "label": 1.5,
        "meta": '{"url":"http://x","n":3}',
    }
    assert (found.summary.rows_in, found.summary.rows_out, found.rejects.height) == (1, 1, 0)


def test_select_from_and_where(ingest: Ingest, tmp_path: Path) -> None:
    data = lines(
        {"id": 1, "items": [{"q": "甲", "a": "一"}, {"q": "乙", "a": "二"}]},
        {"id": 2, "items": [{"q": "丙", "a": "三"}]},
    )
    parts = {"select": "unnest(items) AS item", "query": "item.q", "positive": "item.a"}
    assert ingest(data, **parts).values("query", "positive") == [("甲", "一"), ("乙", "二"), ("丙", "三")]
    chosen = ingest(data, **parts, where="item.q <> '乙' AND id = 1")
    assert chosen.values("query") == ["甲"]
    assert chosen.summary.rows_in == 1  # the others are excluded by `where`
    assert chosen.summary.notes["left_out_by_where"] == {"web": 2}
    (tmp_path / "names.txt").write_text("1 壹\n2 贰\n")
    joined = ingest(
        data,
        **{"from": "rows JOIN names ON split_part(names.line, ' ', 1)::INT = rows.id"},
        join={"names": f"{tmp_path}/names.txt"},
        query="split_part(line, ' ', 2)",
        positive="items[1].a",
    )
    assert joined.values("query", "positive") == [("壹", "一"), ("贰", "三")]


def test_a_changed_joined_file_is_read_again(ingest: Ingest, tmp_path: Path) -> None:
    parts = {"join": {"names": f"{tmp_path}/names.txt"}, "query": "(SELECT line FROM names)", "positive": "a"}
    for name in ("壹", "贰贰"):
        (tmp_path / "names.txt").write_text(name)
        assert ingest(lines({"a": "x"}), **parts).values("query") == [name]


def test_select_may_name_a_column_that_is_there(ingest: Ingest) -> None:
    assert ingest(lines({"query": "甲", "positive": "乙"}), select="query || '！' AS query").values("query") == ["甲！"]


def test_json_values_come_without_their_quotes(ingest: Ingest) -> None:
    data = lines({"a": "甲", "b": 1}, {"a": 2, "b": "x"}, {"a": ["列"], "b": None}, {"a": True, "b": {"c": 1}})
    found = ingest(data, query="a", positive="b")
    assert found.values("query", "positive") == [("甲", "1"), ("2", "x")]
    assert found.rejects.select("line", "detail").rows() == [
        (3, 'a: expected VARCHAR, found ["列"]'),
        (4, 'b: expected VARCHAR, found {"c":1}'),
    ]


def test_an_expression_that_fails_on_a_row_is_null_there(ingest: Ingest) -> None:
    data = lines(*({"a": a, "b": "x", "m": m} for a, m in (("1", "5"), ("one", "5"), ("3", "five"))))
    found = ingest(data, query="a::INT + 1", positive="b", meta="{'m': m::INT}")
    assert found.values("query", "meta") == [("2", '{"m":5}'), ("4", "{}")]
    assert found.rejects.select("line", "reason").rows() == [(2, "no_query")]


def test_labels(ingest: Ingest) -> None:
    labels = ["3.5", 4, "n/a", "nan", {"a": 1}, None]
    data = lines(*({"a": "甲", "b": "乙", "l": label} for label in labels))
    found = ingest(data, task="sts", query="a", positive="b", label="l", label_range=[0, 5])
    assert found.values("label") == [3.5, 4.0]
    assert sorted(found.rejects.select("line", "reason").rows()) == [
        (3, "no_label"),
        (4, "no_label"),
        (5, "column_type"),
        (6, "no_label"),
    ]


def test_negatives(ingest: Ingest) -> None:
    data = lines(*({"a": "甲", "b": "乙", "n": negatives} for negatives in (["一", None, " "], [], None)))
    assert ingest(data, query="a", positive="b", negatives="n").values("negatives") == [["一"], [], []]
    assert ingest(data, query="a", positive="b").values("negatives") == [[], [], []]
    assert ingest(data, query="a", positive="b", negatives="[a, b]").values("negatives") == [["甲", "乙"]] * 3
    found = ingest(data, query="a", positive="b", negatives="a")
    assert found.reasons() == ["projection"] * 3
    assert "expected a list of strings, found VARCHAR" in found.rejects["detail"][0]


def test_numbers_and_noncharacters(ingest: Ingest) -> None:
    data = lines({"a": 18446744073709551615, "b": "x\U0010ffffy"}, {"a": 7, "b": "y\x00z"})
    assert ingest(data, query="a", positive="b").values("query", "positive") == [
        ("18446744073709551615", "x\U0010ffffy"),
        ("7", "yz"),
    ]


# Rejects


def test_the_reject_has_its_row(ingest: Ingest) -> None:
    data = json.dumps([{"a": "甲", "b": "乙", "more": 1}, {"a": "甲", "b": None, "more": 2}])
    found = ingest(data, "a.json", query="a", positive="b")
    (reject,) = found.rejects.to_dicts()
    assert reject["reason"] == "no_positive"
    assert reject["file"].endswith("a.json")
    assert json.loads(reject["record"])["more"] == 2
    assert reject["source"] == "web"


def test_a_row_that_select_makes_nothing_of(ingest: Ingest) -> None:
    data = lines({"items": ["甲"]}, {"items": []}, {"items": None}, {"items": ["乙", "丙"]})
    found = ingest(data, select="unnest(items) AS item", query="item", positive="item")
    assert found.values("query") == ["甲", "乙", "丙"]
    assert found.rejects.select("line", "reason", "detail").rows() == [
        (2, "no_pair", "`select` gives no row for it"),
        (3, "no_pair", "`select` gives no row for it"),
    ]
    assert (found.summary.rows_in, found.summary.rows_out) == (5, 3)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"query": "titel"}, "titel"),
        ({"select": "unnest(itmes) AS item", "query": "item"}, "itmes"),
        ({"query": "title", "where": "yaer > 2000"}, "yaer"),
        ({"query": "[title, text]"}, "expected text, found VARCHAR[]"),
        ({"query": "title ||"}, "syntax error"),
        ({"query": "(SELECT line FROM other)", "join": {"other": "/nowhere.txt"}}, "join other: /nowhere.txt"),
        ({"select": "title::INT AS number", "query": "number"}, "Could not convert"),
        ({"query": "(SELECT content FROM read_text('/etc/passwd'))"}, "file system operations are disabled"),
        ({"select": "content", "from": "read_text('/etc/passwd')", "query": "content"}, "operations are disabled"),
        ({"from": "rows; SET threads = 2", "query": "title"}, ""),
        ({"from": "rows; COPY (SELECT 1) TO '/tmp/x'", "query": "title"}, ""),
    ],
)
def test_sql_that_does_not_fit_rejects_each_row_and_the_rest_goes_on(
    ingest: Ingest, tmp_path: Path, parts: dict[str, Any], said: str
) -> None:
    data = lines({"title": "甲", "text": "乙"}, {"title": "丙", "text": "丁"})
    found = ingest(data, "a.jsonl", faultless(tmp_path), **({"positive": "text"} | parts))
    assert found.reasons() == ["projection", "projection"]
    assert found.rejects["line"].to_list() == [1, 2]
    assert [json.loads(record)["title"] for record in found.rejects["record"]] == ["甲", "丙"]
    detail = found.rejects["detail"][0]
    assert detail.startswith("source web: ")
    assert said in detail
    assert detail.endswith("Available columns: title, text")
    assert found.values("source", "query") == [("faultless", "问")]
    assert found.summary.rejected == {"projection": 2}


def test_a_source_without_a_good_row(ingest: Ingest, tmp_path: Path) -> None:
    for data, reason in (("not json\n", "broken_json"), ("{}\n", "projection")):
        found = ingest(
            data, "a.jsonl", faultless(tmp_path), query="v.title", select="unnest(items) AS v", positive="v.text"
        )
        assert found.reasons() == [reason]
        assert found.pairs.height == 1
    found = ingest("a,b\n", "a.csv", faultless(tmp_path), query="a", positive="b")
    assert (found.rejects.height, found.pairs.height) == (0, 1)


def test_unreadable_files_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    (tmp_path / "dangling.json").symlink_to("/nowhere/at/all")
    (tmp_path / "whole.json").write_text(json.dumps({"query": "问", "positive": "答"}))
    source = {"name": "web", "files": f"{tmp_path}/*.json", "read": "json"}
    found = Ingested(tmp_path / "corpus", Recipe.model_validate({"sources": [source]}))
    assert found.reasons() == ["unreadable", "unreadable"]
    assert [Path(file).name for file in found.rejects["file"]] == ["dangling.json", "x.json"]
    assert found.values("query") == ["问"]


def test_a_source_without_files_is_noted(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    nothing = {"name": "nothing", "files": f"{tmp_path}/empty/*", "read": "json"}
    sets = [nothing | {"name": "test"}, faultless(tmp_path, "other") | {"passages": f"{tmp_path}/no/*"}]
    recipe = Recipe.model_validate({"sources": [nothing, faultless(tmp_path)], "evaluation": sets})
    found = Ingested(tmp_path / "corpus", recipe)
    assert found.summary.empty_sources == [
        f"nothing: no file matches {tmp_path}/empty/*",
        f"test (evaluation): no file matches {tmp_path}/empty/*",
        f"other (evaluation): no file matches {tmp_path}/no/*",
    ]
    assert found.values("source") == ["faultless"]
    with pytest.raises(RecipeError, match="no source matches any file; nothing looks for"):
        stage.ingest(tmp_path / "corpus", Recipe.model_validate({"sources": [nothing]}), ALONE)
    with pytest.raises(RecipeError, match="no `sources:`"):
        stage.ingest(tmp_path / "corpus", Recipe(), ALONE)
    assert frames(tmp_path / "corpus", "ingest")[0].height == 1  # the earlier result is still there
    saved = load_recipe(tmp_path / "corpus")
    assert [source.name for source in saved.sources] == ["nothing", "faultless"]
    assert saved.sources[1].columns == {"query": "VARCHAR", "positive": "VARCHAR"}


def test_globs_without_files_and_skipped_files_are_noted(tmp_path: Path) -> None:
    one = faultless(tmp_path, "one")
    for name in ("empty.jsonl", "none.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / ".DS_Store").write_text("x")
    globs = [f"{tmp_path}/*", f"{tmp_path}/nowhere/*"]
    test = {**faultless(tmp_path, "test"), "passages": f"{tmp_path}/misspelt*"}
    found = Ingested(
        tmp_path / "corpus",
        Recipe.model_validate(
            {"sources": [{**one, "files": globs, "exclude": f"{tmp_path}/test.jsonl"}], "evaluation": [test]}
        ),
    )
    assert found.summary.notes["globs_without_files"] == [
        f"one: {tmp_path}/nowhere/*",
        f"test (evaluation): {tmp_path}/misspelt*",
    ]
    assert found.summary.notes["skipped_files"] == [
        f"one: 2 empty, such as {tmp_path}/empty.jsonl",
        f"one: 1 hidden, such as {tmp_path}/.DS_Store",
    ]
    assert found.reasons("one") == []


# Identity, parts, resume


def test_pair_ids(ingest: Ingest) -> None:
    def ids(*records: dict[str, str], **more: Any) -> list[str]:
        return ingest(lines(*records), query="q", positive="p", **more).pairs["pair_id"].to_list()

    base = {"q": "甲", "p": "乙"}
    (known,) = ids(base)
    assert known == hashlib.md5("\x1f".join(["web", "pretrain", "甲", "乙"]).encode()).hexdigest()
    assert ids(base, base) == [known, known]
    assert ids(base | {"q": " 甲\u200b"}) == [known]  # computed from the normalised text
    assert ids(base, category="news", negatives="['丙']", meta="{'a': 1}") == [known]
    others = [
        *ids({"q": "甲乙", "p": ""}, {"q": "", "p": "甲乙"}, {"q": "乙", "p": "甲"}, {"q": "甲", "p": "乙乙"}),
        *ids(base, name="other"),
        *ids(base, task="classification"),
    ]
    assert len({known, *others}) == 7


def test_files_are_packed_into_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jsonl").write_text(lines({"query": str(number), "positive": "答"}))
    size = (tmp_path / "0.jsonl").stat().st_size
    monkeypatch.setattr(splits, "SHARD_BYTES", 2 * size)
    recipe = Recipe.model_validate({"sources": [{"name": "web", "files": f"{tmp_path}/*.jsonl", "read": "jsonl"}]})
    found = Ingested(tmp_path / "corpus", recipe)
    assert found.summary.shards == 3
    assert found.values("query") == list("01234")

    assert Ingested(tmp_path / "corpus", recipe).summary.skipped == 3
    (tmp_path / "4.jsonl").write_text(lines({"query": "新", "positive": "答"}))
    again = Ingested(tmp_path / "corpus", recipe)
    assert again.summary.skipped == 2
    assert again.values("query") == [*"0123", "新"]


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"query": "a || '？'"}, 1),
        ({"encoding": "utf-8"}, 1),
        ({"priority": 3}, 0),
        ({"licence": "MIT"}, 0),
        ({"label_range": [0, 5]}, 0),
    ],
)
def test_a_change_redoes_what_it_touches(ingest: Ingest, change: dict[str, Any], redone: int, tmp_path: Path) -> None:
    data = lines({"a": "甲", "b": "乙"})
    ingest(data, "a.jsonl", faultless(tmp_path), query="a", positive="b")
    time = (tmp_path / "a.jsonl").stat()
    source = {"name": "web", "files": f"{tmp_path}/a.jsonl", "read": "jsonl", "query": "a", "positive": "b"} | change
    kept = {"name": "faultless", "files": f"{tmp_path}/faultless.jsonl", "read": "jsonl"}
    assert (
        Ingested(tmp_path / "corpus", Recipe.model_validate({"sources": [source, kept]})).summary.skipped == 2 - redone
    )
    assert (tmp_path / "a.jsonl").stat().st_mtime_ns == time.st_mtime_ns


def test_a_passage_is_a_positive_alone(tmp_path: Path) -> None:
    (tmp_path / "manual.jsonl").write_text(
        lines({"query": "题", "positive": "段"}, {"positive": "落"}, {"query": "题"})
    )
    source = {"name": "manual", "task": "passage", "files": f"{tmp_path}/manual.jsonl", "read": "jsonl"}
    stage.ingest(tmp_path / "corpus", Recipe.model_validate({"sources": [source]}), ALONE)
    pairs, rejects = frames(tmp_path / "corpus", "ingest")
    assert pairs.select("task", "query", "positive").rows() == [("passage", "", "段"), ("passage", "", "落")]
    assert pairs["pair_id"].n_unique() == 2
    assert rejects.select("task", "reason", "line").rows() == [("passage", "no_positive", 3)]
