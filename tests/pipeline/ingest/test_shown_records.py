"""The record of a reject: the text as it was read, without personal data."""

import base64
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conan_embedding.pipeline.ingest.shown_records import BASE64
from conan_embedding.schemas.recipe import Recipe
from ingested import Ingested

PHONE = "13800138000"


def reject(path: Path, data: bytes, *, recipe: dict[str, Any] | None = None, **source: Any) -> list[str]:
    """Return the records that are rejected."""
    path.write_bytes(data)
    given = {"name": "web", "files": str(path), "read": path.suffix[1:], **source}
    found = Ingested(path.parent / "corpus", Recipe.model_validate({"sources": [given], **(recipe or {})}))
    assert found.pairs.is_empty()
    return found.rejects["record"].to_list()


@pytest.mark.parametrize(
    ("name", "data", "record", "source"),
    [
        ("a.jsonl", '{"q":  "问", "p": null, "n": 3.10}\n', '{"q":  "问", "p": null, "n": 3.10}', {}),
        ("a.json", '[\n {"q": "问",\n  "p": null}\n]', '{"q": "问",\n  "p": null}', {}),
        ("a.csv", 'q,p\n"问, ""题""",\n', '"问, ""题""",', {"positive": "nullif(p, '')"}),
        ("a.tsv", "q\tp\n问\t\n", "问\t", {"positive": "nullif(p, '')"}),
        ("a.txt", "一行\n", "一行", {"read": "text", "query": "line", "positive": "NULL"}),
        ("a.md", "# 题\n\n", "# 题\n\n", {"read": "markdown", "query": "query", "positive": "NULL"}),
    ],
)
def test_the_record_is_the_text_that_was_read(
    name: str, data: str, record: str, source: dict[str, Any], tmp_path: Path
) -> None:
    assert reject(tmp_path / name, data.encode(), **{"query": "q", "positive": "p"} | source) == [record]


def test_a_row_of_parquet_shows_all_its_columns(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"q": [None], "p": ["答"], "image": [{"bytes": b"\x89PNG", "path": "a.png"}], "n": [float("nan")]}
    ).with_columns(pl.lit(datetime(2024, 1, 2)).dt.cast_time_unit("ns").alias("at"))  # as pandas writes it
    frame.write_parquet(tmp_path / "b.parquet")
    (record,) = reject(tmp_path / "a.parquet", (tmp_path / "b.parquet").read_bytes(), query="q", positive="p")
    assert json.loads(record, parse_constant=str) == {
        "q": None,
        "p": "答",
        "image": {"bytes": "iVBORw==", "path": "a.png"},
        "n": "NaN",
        "at": "2024-01-02 00:00:00",
    }


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "big5"])
def test_what_is_no_text_is_base64(encoding: str, tmp_path: Path) -> None:
    good = '{"q": "今天天氣很好，我們去公園散步", "p": "這是他們的"}\n'.encode(encoding)
    bad = good[:20] + b"\xff" + good[20:]
    records = reject(tmp_path / "a.jsonl", good * 3 + bad, query="q", positive="NULL", encoding=encoding)
    (record,) = [one for one in records if one.startswith(BASE64)]
    assert base64.b64decode(record.removeprefix(BASE64)) == bad.rstrip(b"\n")


@pytest.mark.parametrize(
    ("recipe", "source", "shown"),
    [
        ({}, {}, "[手机号]"),
        ({}, {"rejects": "raw"}, PHONE),
        ({"filter": {"mask": False}}, {}, PHONE),
    ],
)
def test_personal_data_is_masked_where_the_filter_masks_it(
    recipe: dict[str, Any], source: dict[str, Any], shown: str, tmp_path: Path
) -> None:
    line = f'{{"q": "今天天气很好，我们去公园散步，请打他的电话{PHONE}", "p": null}}'
    broken = f"电话{PHONE}".encode() + b"\xff"
    data = line.encode() + b"\n" + b'{"q": "' + broken + b'"}\n'
    text, in_base64 = reject(
        tmp_path / "a.jsonl", data, recipe=recipe, query="q", positive="p", encoding="utf-8", **source
    )[::-1]
    assert text == line.replace(PHONE, shown)
    lost = base64.b64decode(in_base64.removeprefix(BASE64))
    assert lost == b'{"q": "' + broken.replace(PHONE.encode(), shown.encode()) + b'"}'


def test_details_are_masked_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"q": ["问"], "p": PHONE}) + "\n")
    given = {"name": "web", "files": f"{tmp_path}/a.jsonl", "read": "jsonl", "query": "q[1]", "positive": "p"}
    given["columns"] = {"q": "VARCHAR[]", "p": "VARCHAR[]"}
    found = Ingested(tmp_path / "corpus", Recipe.model_validate({"sources": [given]}))
    assert found.rejects["detail"].to_list() == ['p: expected VARCHAR[], found "[手机号]"']
