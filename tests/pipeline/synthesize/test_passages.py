"""Which passages queries are written for, and among which they must find their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conan_embedding.pipeline.synthesize.passages import check_sql, choose_passages, list_searched
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.schemas.synthesize_settings import SynthesizeSettings

FOLDERS = ("ingest", "filter", "dedup")
PHONE = "咨询电话13800138000。"


@pytest.fixture
def corpus(pair: Callable[..., dict[str, Any]], write_shards: Callable[..., None], tmp_path: Path) -> Path:
    rows = [
        pair("题一", "甲", task="pretrain"),
        pair("题二", "甲", task="retrieval"),
        pair("题三", PHONE, source="laws", task="retrieval"),
        pair("", "乙", source="laws", task="passage"),
        pair("句子", "丙", task="sts"),
        pair("文本", "类", task="classification"),
        pair("问甲", "甲", source="written", task="retrieval"),
        pair("请写", "写的", source="written", task="retrieval"),
    ]
    for folder in FOLDERS:
        write_shards(tmp_path, folder, rows[:5], rows[5:])
    return tmp_path


def settings(sql: str | None = None, sample: int | None = None, kind: str = "question") -> SynthesizeSettings:
    given = {"server": {"model": "m"}, "budget": {"requests": 1, "tokens": 1}, "kinds": {kind: 1}}
    return SynthesizeSettings.model_validate(given | {"passages": {"sql": sql, "sample": sample}})


def choose(
    corpus: Path, sql: str | None = None, sample: int | None = None, mask: bool = True, kind: str = "question"
) -> pl.DataFrame:
    return choose_passages(corpus, settings(sql, sample, kind), ["written"], mask, "recipe.yaml:7: sql")


def test_positives_and_passages_are_chosen_each_once(corpus: Path, pair: Callable[..., dict[str, Any]]) -> None:
    found = choose(corpus, mask=False)
    assert sorted(found["text"]) == sorted(["甲", PHONE, "乙"])
    ids = [pair("题一", "甲")["pair_id"], pair("题二", "甲", task="retrieval")["pair_id"]]
    assert found.filter(text="甲")["pair_id"].to_list() == [min(ids)]
    assert found["hash"].is_sorted() and found["hash"].n_unique() == 3


def test_personal_data_is_masked(corpus: Path) -> None:
    assert "咨询电话[手机号]。" in choose(corpus)["text"]
    assert PHONE in choose(corpus, mask=False)["text"]


@pytest.mark.parametrize(
    "sql, expected",
    [
        ("SELECT positive AS text, pair_id FROM dedup WHERE source = 'laws'; ", {PHONE, "乙"}),
        ("SELECT query AS text, pair_id FROM filter -- all", {"题一", "题二", "题三", "句子", "文本"}),
        ("SELECT positive AS text, pair_id FROM ingest WHERE source = 'written'", set()),
    ],
)
def test_sql_chooses_but_never_what_a_model_wrote(sql: str, expected: set[str], corpus: Path) -> None:
    assert set(choose(corpus, sql, mask=False)["text"]) == expected


def test_rows_of_a_model_are_left_out_wherever_sql_finds_them(corpus: Path) -> None:
    shard = (corpus / "dedup" / "part-00001.parquet").resolve()
    sql = f"SELECT positive AS text, pair_id FROM read_parquet('{shard}') WHERE source = 'written'"
    assert choose(corpus, sql).is_empty()


def test_a_sample_grows_with_its_number(corpus: Path) -> None:
    whole = choose(corpus, mask=False)["text"].to_list()
    for sample in (1, 2, 5):
        assert choose(corpus, sample=sample, mask=False)["text"].to_list() == whole[:sample]


@pytest.mark.parametrize(
    "sql, message",
    [
        (
            "SELECT positive FROM dedup",
            "expected the columns text, pair_id, each VARCHAR, found positive VARCHAR",
        ),
        ("SELECT 1 AS text, pair_id FROM dedup", "found text INTEGER, pair_id VARCHAR"),
        ("SELECT text, pair_id FROM score", "score does not exist"),
        ("SELECT text FROM", "syntax error"),
        ("SELECT content AS text, filename AS pair_id FROM read_text('/etc/hostname')", "disabled by configuration"),
    ],
)
def test_other_sql_is_refused(sql: str, message: str, corpus: Path) -> None:
    for run in (lambda: choose(corpus, sql), lambda: check_sql(settings(sql), "recipe.yaml:7: sql")):
        with pytest.raises(RecipeError, match=message) as told:
            run()
        assert str(told.value).startswith("recipe.yaml:7: sql: ")


def test_translations_are_of_pairs_that_dedup_kept(
    corpus: Path, pair: Callable[..., dict[str, Any]], write_shards: Callable[..., None]
) -> None:
    found = choose(corpus, kind="translation")
    assert sorted(found["query"]) == ["题一", "题三", "题二"] and "咨询电话[手机号]。" in found["text"]
    held_out = pair("问题", "甲", task="retrieval")
    write_shards(corpus, "ingest", [pair("题一", "甲"), pair("请拨13800138000", "甲"), held_out])
    write_shards(corpus, "dedup", [pair("题一", "甲"), pair("请拨13800138000", "甲")])
    sql = "SELECT positive AS text, query, pair_id FROM ingest WHERE task <> 'classification'"
    assert set(choose(corpus, sql, kind="translation")["query"]) == {"题一", "请拨[手机号]"}
    with pytest.raises(RecipeError, match="columns text, query, pair_id, each VARCHAR, found text VARCHAR"):
        choose(corpus, "SELECT positive AS text, pair_id FROM dedup", kind="translation")


def test_what_is_searched(corpus: Path, pair: Callable[..., dict[str, Any]]) -> None:
    found = list_searched(corpus, ["written"])
    assert found["text"].to_list() == sorted(["甲", PHONE, "乙"])
    assert found.filter(text="甲").row(0)[2:] == ("web", [pair("题一", "甲")["cluster_id"]])
