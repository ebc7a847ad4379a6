"""The names of columns in a recipe's SQL."""

from typing import Any

import pytest
from conan_embedding.pipeline.ingest.sql_names import find_names, replace_columns
from conan_embedding.schemas.source_settings import Source


def names(**source: Any) -> set[str] | None:
    return find_names(Source.model_validate({"name": "web", "files": "*", "read": "jsonl", **source}))


def test_names_in_any_part() -> None:
    found = names(
        select="unnest(items) AS v",
        where="lang = 'zh' -- not english",
        query='v."the title"',
        positive="list_transform(answers, lambda one: one.text)[1]",
        label="score / 5",
        meta="{'url': link, 'name': \"date\"}",
    )
    assert found is not None
    assert {"items", "v", "lang", "the title", "answers", "text", "score", "link", "date"} <= found
    assert not {"zh", "english", "not", "url", "name"} & found


def test_types_and_functions_are_not_columns() -> None:
    found = names(query="json(a)", positive="b::JSON ->> 'x' || CAST(c AS JSON)", meta="to_json(d)")
    assert found is not None
    assert {"a", "b", "c", "d"} <= found
    assert not {"json", "JSON", "to_json"} & found


def test_names_of_fields_in_strings() -> None:
    assert {"t", "c"} <= (names(query="v['t']", positive="struct_extract(v, 'c')") or set())


def test_keywords_and_defaults_can_be_columns() -> None:
    assert {"text", "label", "negatives", "meta"} <= (names(query="text", positive="label") or set())


@pytest.mark.parametrize(
    "source",
    [
        {"meta": "rows"},
        {"meta": "to_json(rows)"},
        {"select": "COLUMNS('t.*')", "from": "rows"},
        {"from": "rows AS r", "meta": "r"},
        {"from": "rows r JOIN names n ON n.line = r.a"},
    ],
)
def test_whole_rows_are_every_column(source: dict[str, Any]) -> None:
    assert names(**source) is None


def test_rows_as_a_table_is_not_every_column() -> None:
    assert names(**{"from": "rows JOIN names ON rows.id = names.line", "select": "rows.*, line"}) is not None


@pytest.mark.parametrize(
    ("sql", "replaced"),
    [
        ("concat('n', n)", "concat('n', <n>)"),
        ("N::INT + n.x + n[1] + x.n", "<N>::INT + n.x + n[1] + x.n"),
        ("{'n': n, n: n}", "{'n': <n>, n: <n>}"),
        ('m AS n -- n\n, "n"', 'm AS n -- n\n, <"n">'),
        ("n(n)", "n(<n>)"),
        ("'标题' || n || E'\\t'", "'标题' || <n> || E'\\t'"),
    ],
)
def test_columns_are_replaced_where_they_are_used_whole(sql: str, replaced: str) -> None:
    assert replace_columns(sql, ["n"], "<{}>") == replaced


@pytest.mark.parametrize(
    ("sql", "replaced"),
    [
        ("n", "<n>"),
        ("{'n': n, 'm': [n.x, N]}", "{'n': <n>, 'm': [<n>.x, <N>]}"),
        ("struct_pack(n := n, m := coalesce(n, m))", "struct_pack(n := <n>, m := coalesce(<n>, m))"),
        ("{'n': CASE WHEN n > 3 THEN n ELSE n.x END}", "{'n': CASE WHEN n > 3 THEN <n> ELSE <n>.x END}"),
        ("{'n': n::INT, 'm': TRY_CAST(n AS INT)}", "{'n': n::INT, 'm': TRY_CAST(n AS INT)}"),
        ("{'n': starts_with(n, '3'), 'm': n[1], 'k': m[n]}", "{'n': starts_with(n, '3'), 'm': n[1], 'k': m[n]}"),
    ],
)
def test_columns_are_replaced_where_they_are_values(sql: str, replaced: str) -> None:
    assert replace_columns(sql, [], "", {"n": "<{}>"}) == replaced
