"""The types of columns: one for all rows of a source, whatever else a few rows hold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conan_embedding.pipeline.corpus.saved_recipe import load_recipe
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.ingest import columns, splits
from conan_embedding.pipeline.ingest.columns import decide_columns
from conan_embedding.pipeline.ingest.files import FileSplit
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.schemas.recipe import Recipe
from conan_embedding.schemas.source_settings import Source
from hypothesis import given
from hypothesis import strategies as st
from ingested import Ingested
from properties import max_examples

Ingest = Callable[..., Ingested]


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return path


@pytest.fixture
def ingest(tmp_path: Path) -> Ingest:
    """Return a function that ingests all JSONL files of a folder."""

    def ingest(*records: Any, workers: int = 1, corpus: str = "corpus", **source: Any) -> Ingested:
        if records:
            write(tmp_path / "a.jsonl", *records)
        given = {"name": "web", "files": f"{tmp_path}/*.jsonl", "read": "jsonl", "positive": "p", **source}
        return Ingested(tmp_path / corpus, Recipe.model_validate({"sources": [given]}), Engine(workers=workers))

    return ingest


# One odd row among many: what the SQL means for the others stays the same.

USUAL = {"q": "问", "p": "答", "a": ["甲", "乙"], "v": [{"t": "题", "c": "文"}], "o": {"t": "题"}, "n": 3, "b": True}
ODD: list[Any] = [{}, {"x": 1}, [], [1], [["甲"]], "文", 7, 2.5, True]


@pytest.mark.parametrize(
    ("column", "source", "expected", "rest"),
    [
        ("a", {"query": "a[1]"}, "甲", ["1"]),
        ("a", {"query": "array_to_string(a, '、')"}, "甲、乙", ["", "1"]),
        ("a", {"query": "len(a)::VARCHAR"}, "2", ["0", "1"]),
        ("v", {"query": "each.t", "select": "unnest(v) AS each"}, "题", []),
        ("v", {"query": "v[1].t"}, "题", []),
        ("o", {"query": "trim(o.t)"}, "题", []),
        ("q", {"query": "replace(q, '问', '\"')"}, '"', ["文", "7", "2.5", "true"]),
        ("q", {"query": "trim(q)"}, "问", ["文", "7", "2.5", "true"]),
        ("q", {"query": "coalesce(q, p)"}, "问", ["文", "7", "2.5", "true"]),
        ("q", {"query": "p", "where": "q = '问'"}, "答", []),
        ("n", {"query": "CASE WHEN n + 1 > 3 THEN p END"}, "答", ["答", "答"]),
        ("n", {"query": "p", "where": "n > 2"}, "答", ["答", "答"]),
        ("n", {"query": "concat('约', n)"}, "约3", ["约7", "约2.5"]),
        ("b", {"query": "p", "where": "b"}, "答", ["答"]),
    ],
)
def test_odd_rows_cost_only_themselves(
    ingest: Ingest, column: str, source: dict[str, Any], expected: str, rest: list[str]
) -> None:
    """The SQL means the same for all other rows. Texts hold any scalar, and lists of texts any list of scalars."""
    usual = [USUAL] * 20
    found = ingest(*usual, *(USUAL | {column: odd} for odd in ODD), **source)
    assert found.values("query") == [expected] * 20 + rest
    assert set(found.reasons()) <= {"column_type", "no_query", "no_pair"}
    left_out = found.summary.notes["left_out_by_where"].get("web", 0)
    assert len(rest) + found.rejects.height + left_out == len(ODD)
    rejected = [json.loads(record)[column] for record in found.rejects["record"]]
    assert all(one in ODD for one in rejected)
    assert len({json.dumps(one) for one in rejected}) == len(rejected)


def test_the_reject_names_the_type_and_the_value(ingest: Ingest) -> None:
    found = ingest(*[USUAL] * 4, {"q": "问", "p": "答", "a": {"x": "y"}}, query="a[1]")
    assert found.rejects.select("line", "reason", "detail").rows() == [
        (5, "column_type", 'a: expected VARCHAR[], found {"x":"y"}')
    ]


def test_null_is_no_other_type(ingest: Ingest) -> None:
    found = ingest({"q": None, "p": "答"}, {"q": "问", "p": "答"}, {"p": "答"}, query="coalesce(q, '无')")
    assert found.values("query") == ["无", "问", "无"]
    assert found.reasons() == []


@pytest.mark.parametrize("order", ["abc", "bca", "cba"])
def test_files_in_any_order_and_workers_of_any_number(
    ingest: Ingest, tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits, "SHARD_BYTES", 1)
    files = (
        [{"q": ["甲", "乙"], "p": "答"}] * 3,
        [{"q": "文", "p": "答"}],
        [{"q": ["丙"], "p": "答"}, {"q": {}, "p": "答"}],
    )
    for name, records in zip(order, files, strict=True):
        write(tmp_path / f"{name}.jsonl", *records)
    workers = 2 if order == "abc" else 1
    found = ingest(query="q[1]", workers=workers)
    assert sorted(found.values("query")) == ["丙", "甲", "甲", "甲"]
    assert sorted(json.dumps(json.loads(one)["q"]) for one in found.rejects["record"]) == sorted(
        [json.dumps("文"), "{}"]
    )


# Mixtures


def test_a_mixed_column_is_refused_before_any_work(ingest: Ingest, tmp_path: Path) -> None:
    listed = [{"q": ["甲"], "p": "答"}] * 3
    with pytest.raises(RecipeError) as refused:
        ingest(*listed, *[{"q": "文", "p": "答"}] * 2, query="q[1]")
    assert str(refused.value) == (
        f"source web: the column q is mixed: 3 lists (first in {tmp_path}/a.jsonl, line 1), 2 texts (first in "
        f'{tmp_path}/a.jsonl, line 4). Declare its type in the recipe: `columns: {{q: "VARCHAR[]"}}` rejects the other '
        "rows; with `columns: {q: JSON}` the SQL reads all of them, by `q ->> '$'`"
    )
    assert not (tmp_path / "corpus").exists()
    declared = ingest(query="q[1]", columns={"q": "VARCHAR[]"})
    assert (declared.values("query"), declared.reasons()) == (["甲"] * 3, ["column_type"] * 2)
    assert (
        ingest(query="coalesce(q ->> 0, q ->> '$')", columns={"q": "JSON"}).values("query") == ["甲"] * 3 + ["文"] * 2
    )


def test_a_third_of_others_is_not_yet_a_mixture(ingest: Ingest) -> None:
    found = ingest(*[{"q": ["甲"], "p": "答"}] * 2, {"q": "文", "p": "答"}, query="q[1]")
    assert (found.values("query"), found.reasons()) == (["甲", "甲"], ["column_type"])


def test_meta_keeps_a_mixture(ingest: Ingest) -> None:
    found = ingest({"p": "一", "m": [1]}, {"p": "二", "m": {"a": 1}}, {"p": "三", "m": "x"}, query="p", meta="{'m': m}")
    assert found.values("meta") == ['{"m":[1]}', '{"m":{"a":1}}', '{"m":"x"}']


def test_scalars_are_texts_as_they_are_written(ingest: Ingest, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"q": 3.10}\n{"q": "甲"}\n{"q": true}\n{"q": 12345678901234567890123}\n{"q": 1E5}\n'
    )
    assert ingest(query="q", positive="q").values("query") == ["3.10", "甲", "true", "12345678901234567890123", "1E5"]


@pytest.mark.parametrize(
    ("usual", "column", "kind"),
    [
        ([{"t": "题"}], "x", "STRUCT(t VARCHAR)[]"),
        ({"t": "题"}, "x", "STRUCT(t VARCHAR)"),
        ([1], "x", "BIGINT[]"),
        ({"t": 1}, "x.t", "STRUCT(t BIGINT)"),
    ],
)
def test_the_cure_of_a_mixture_is_the_type_of_most(ingest: Ingest, usual: Any, column: str, kind: str) -> None:
    odd = {"t": ["文"]} if column == "x.t" else "文"
    with pytest.raises(RecipeError) as refused:
        ingest(*[{"x": usual, "p": "答"}] * 3, {"x": odd, "p": "答"}, {"x": odd, "p": "答"}, query="x.t")
    assert f"the column {column} is mixed: 3 " in str(refused.value)
    assert f'`columns: {{x: "{kind}"}}` rejects the other rows' in str(refused.value)


@pytest.mark.parametrize("query", ["replace(o.t, '题', '目')", "replace(o['t'], '题', '目')"])
@pytest.mark.parametrize("odd", [{"T": "文"}, {"": "文"}, {"t": "题", "T": "文"}])
def test_odd_keys_of_objects_cost_only_themselves(ingest: Ingest, query: str, odd: dict[str, str]) -> None:
    found = ingest(*[{"o": {"t": '"题"'}, "p": "答"}] * 2, {"o": odd, "p": "答"}, query=query)
    assert found.values("query") == ['"目"', '"目"'] + ["目"] * ("t" in odd)
    assert len(found.reasons()) == ("t" not in odd)


# Numbers in `meta`

NUMBERS = (
    '{"p": "答", "f": 3.10, "o": {"x": 1.50, "y": [2.0, 3, NaN]}, "l": [1.10, 2], "i": {"id": 12345678901234567890},'
    ' "e": 1e400, "m": [1.0]}\n{"p": "答", "m": {"a": -0.50}, "o": {"late": 0.10}}\n{"p": "答", "m": "NaN \\" 1.50"}\n'
)


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ("{'f': f, 'e': e}", ['{"f":3.10,"e":1e400}', '{"f":null,"e":null}', '{"f":null,"e":null}']),
        ("o", ['{"x":1.50,"y":[2.0,3,"NaN"]}', '{"late":0.10}', "{}"]),
        ("{'x': o.x, 'l': l}", ['{"x":1.50,"l":[1.10,2]}', '{"x":null,"l":null}', '{"x":null,"l":null}']),
        ("{'i': i.id}", ['{"i":12345678901234567890}', '{"i":null}', '{"i":null}']),
        ("{'m': m}", ['{"m":[1.0]}', '{"m":{"a":-0.50}}', '{"m":"NaN \\" 1.50"}']),
        ("{'f': f, 'g': f * 2}", ['{"f":3.10,"g":6.2}', '{"f":null,"g":null}', '{"f":null,"g":null}']),
        ("{'f': f::INT}", ['{"f":3}', '{"f":null}', '{"f":null}']),
        ("{'f': starts_with(f, '3')}", ['{"f":true}', '{"f":null}', '{"f":null}']),
    ],
)
def test_meta_has_the_digits_of_the_file(ingest: Ingest, tmp_path: Path, meta: str, expected: list[str]) -> None:
    (tmp_path / "a.jsonl").write_text(NUMBERS)
    assert ingest(query="p", meta=meta).values("meta") == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"query": "list_max(l)"}, "10.5"),
        ({"query": "list_sort(l)[1]"}, "9.25"),
        ({"query": "list_reverse_sort(list_transform(v, lambda one: {'s': one.s, 't': one.t}))[1].t"}, "乙"),
        ({"query": "CASE WHEN f > g THEN p ELSE 'x' END"}, "答"),
        ({"query": "greatest(f, g)"}, "10.5"),
        ({"query": "concat(f, '>', 9)"}, "10.50>9"),
        ({"select": "f AS price", "where": "price > 9.5", "query": "p"}, "答"),
        ({"select": "f AS price", "query": "concat('约', price)"}, "约10.50"),
    ],
)
def test_decimals_are_compared_as_numbers(
    ingest: Ingest, tmp_path: Path, source: dict[str, Any], expected: str
) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"p": "答", "f": 10.50, "g": 9.25, "l": [9.25, 10.50], "v": [{"t": "甲", "s": 9.25}, {"t": "乙", "s": 10.50}]}'
    )
    assert ingest(**source).values("query") == [expected]


def test_digits_in_declared_json(ingest: Ingest, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"p": "答", "m": {"a": 1.10, "b": [1e400, NaN]}}\n')
    found = ingest(query="m ->> '$.a'", where="(m ->> '$.a')::DOUBLE > 1", meta="{'m': m}", columns={"m": "JSON"})
    assert found.values("query", "meta") == [("1.10", '{"m":{"a":1.10,"b":[1e400,"NaN"]}}')]


# Declared types


def test_declared_integers_of_many_digits(ingest: Ingest) -> None:
    records = [{"n": 1234567890123456789, "p": "一"}, {"n": 1, "p": "二"}, {"n": "1", "p": "三"}, {"n": 1.5, "p": "四"}]
    found = ingest(*records, query="n", columns={"n": "BIGINT"}, meta="{'n': n}")
    assert found.values("query", "meta") == [("1234567890123456789", '{"n":1234567890123456789}'), ("1", '{"n":1}')]
    assert found.rejects["detail"].to_list() == ['n: expected BIGINT, found "1"', "n: expected BIGINT, found 1.5"]


def test_declared_types(ingest: Ingest) -> None:
    found = ingest(
        {"d": "2024-01-31", "p": "一"}, {"d": "2024-13-01", "p": "二"}, query="year(d)::VARCHAR", columns={"d": "DATE"}
    )
    assert found.values("query") == ["2024"]
    assert found.rejects["detail"].to_list() == ['d: expected DATE, found "2024-13-01"']
    with pytest.raises(RecipeError, match="columns: d: 'DATUM' is not a type of DuckDB; expected one such as VARCHAR"):
        ingest(query="d", columns={"d": "DATUM"})
    with pytest.raises(RecipeError, match="`columns:` does not apply to `read: alpaca`"):
        ingest(read="alpaca", columns={"instruction": "VARCHAR"})


def test_declared_types_of_a_table(ingest: Ingest, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("q,p,n\n甲,一,3\n乙,二,x\n丙,三,\n丁,四,10\n")
    parts = {"files": f"{tmp_path}/a.csv", "read": "csv", "query": "q", "columns": {"n": "BIGINT"}}
    found = ingest(**parts, where="n IS NULL OR n > 5")
    assert found.values("query") == ["丙", "丁"]
    assert found.rejects.select("line", "detail", "record").rows() == [
        (3, "n: expected BIGINT, found x of type VARCHAR", "乙,二,x")
    ]


def test_declared_lists_and_numbers_of_a_table(ingest: Ingest, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('q,p,n\n"[""甲"", ""乙""]",一,007\n文,二,1\n')
    parts = {"files": f"{tmp_path}/a.csv", "read": "csv", "query": "q[2]", "meta": "{'n': n}"}
    found = ingest(**parts, columns={"q": "VARCHAR[]", "n": "DOUBLE"})
    assert found.values("query", "meta") == [("乙", '{"n":"007"}')]
    assert found.rejects["detail"].to_list() == ["q: expected VARCHAR[], found 文 of type VARCHAR"]


# What is decided is kept


def test_a_new_file_retypes_nothing(ingest: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "SHARD_BYTES", 1)
    first = ingest({"q": ["甲", "乙"], "p": "答"}, query="q[1]")
    assert load_recipe(tmp_path / "corpus").sources[0].columns == {"q": "VARCHAR[]", "p": "VARCHAR"}
    write(tmp_path / "b.jsonl", *[{"q": "文", "p": "答"}] * 3)
    second = ingest(query="q[1]")
    assert second.summary.skipped == first.summary.shards == 1
    assert (second.values("query"), second.reasons()) == (["甲"], ["column_type"] * 3)
    assert second.summary.notes["kept_types"] == [
        "web: the column q stays VARCHAR[], as in the shards that are there, though its files now look like VARCHAR; "
        'to change it, declare `columns: {q: "VARCHAR"}`'
    ]
    changed = ingest(query="q[1]", columns={"q": "VARCHAR"})
    assert (changed.summary.skipped, changed.values("query")) == (0, ["文"] * 3)
    asked_otherwise = ingest(query="q")  # other SQL: the types are decided again
    assert asked_otherwise.values("query") == ["文"] * 3


# Columns that the sample lacks


def test_a_column_beyond_the_sample_is_found(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "SAMPLE_BYTES", 1)
    found = ingest(
        {"p": "一"}, {"p": "二", "late": None}, {"p": "三", "late": ["甲", "乙"]}, query="coalesce(late[2], p)"
    )
    assert found.values("query") == ["一", "二", "乙"]
    assert found.summary.notes["absent_columns"] == []


def test_negatives_beyond_the_sample_are_told(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "SAMPLE_BYTES", 1)
    found = ingest({"p": "一"}, {"p": "二", "negatives": []}, {"p": "三", "negatives": ["甲"]}, query="p")
    assert found.values("query") == ["一", "二"]
    assert found.rejects["detail"].to_list() == [
        'negatives: none of the first records has this column; declare it, as in `columns: {negatives: "VARCHAR[]"}`'
    ]


# Keys that differ only in case


def test_keys_that_differ_only_in_case_are_one_column(ingest: Ingest) -> None:
    records = [{"Query": "大", "p": "一"}, {"query": "小", "p": "二"}, {"Query": "大", "query": "小", "p": "三"}]
    assert ingest(*records, query="query").values("query") == ["大", "小", "小"]
    assert ingest(*records, query="Query", corpus="other").values("query") == ["大", "小", "大"]


# Files that declare types


def test_parquet_files_of_other_types(ingest: Ingest, tmp_path: Path) -> None:
    pl.DataFrame({"q": [["甲", "乙"]] * 3, "n": [1, 2, 3], "p": ["答"] * 3}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"q": ["文"], "n": ["4"], "p": ["答"]}).write_parquet(tmp_path / "b.parquet")
    parts = {"files": f"{tmp_path}/*.parquet", "read": "parquet", "query": "q[1]", "meta": "{'n': n}"}
    found = ingest(**parts)
    assert found.values("query", "meta") == [("甲", '{"n":"1"}'), ("甲", '{"n":"2"}'), ("甲", '{"n":"3"}')]
    assert found.rejects.select("reason", "detail").rows() == [
        ("column_type", "q: expected VARCHAR[], found 文 of type VARCHAR")
    ]
    assert json.loads(found.rejects["record"][0]) == {"q": "文", "n": "4", "p": "答"}


# Any records

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "x", "[1]", "甲"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "甲"]), inner, max_size=2),
    max_leaves=4,
)


@max_examples(8)
@given(records=st.lists(st.dictionaries(st.sampled_from(["q", "Q", "z"]), values), min_size=1, max_size=8))
def test_a_text_column_holds_every_scalar_and_nothing_else(
    records: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every row becomes a pair, with the text as it is written, or a reject with its record."""
    folder = tmp_path_factory.mktemp("records")
    path = write(folder / "a.jsonl", *records)
    source = {
        "name": "web",
        "files": str(path),
        "read": "jsonl",
        "query": "q",
        "positive": "'x'",
        "columns": {"q": "VARCHAR"},
    }
    found = Ingested(folder / "corpus", Recipe.model_validate({"sources": [source]}))
    wanted = [record["q"] if record.get("q") is not None else record.get("Q") for record in records]
    texts = [
        one if isinstance(one, str) else json.dumps(one)
        for one in wanted
        if one is not None and not isinstance(one, list | dict)
    ]
    assert found.values("query") == texts
    rejected = [
        record for record, one in zip(records, wanted, strict=True) if one is None or isinstance(one, list | dict)
    ]
    assert sorted(found.rejects["record"]) == sorted(json.dumps(record, ensure_ascii=False) for record in rejected)


def test_only_columns_that_the_sql_names_are_typed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"q": 1, "p": "x", "other": [1, {"y": "z"}], "v": {"t": 1, "u": [1, "x"]}})
    splits = [FileSplit(str(path))]
    given = {"name": "web", "files": "*", "read": "jsonl", "query": "q", "positive": "v.t"}
    assert decide_columns(Source.model_validate(given), splits).source.columns == {
        "q": "BIGINT",
        "v": "STRUCT(t BIGINT, u JSON)",
    }
