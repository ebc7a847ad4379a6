"""The filter stage: accounting, masks, titles, lists and resume."""

from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from conan_embedding.pipeline.corpus.folder import read_footer
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.filter.rules import RULES
from conan_embedding.pipeline.filter.stage import filter_pairs, read_groups
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.schemas.settings import FilterSettings

ONE = Engine(workers=1)
QUESTION = "北京的秋天为什么适合旅行？"
ANSWER = "秋天的北京天气晴朗，香山的红叶正红，是一年里最适合出门的季节。"


def test_rows_in_are_rows_out_and_rejected(tmp_path: Path, pair, write_shards, read) -> None:
    good = [pair(f"{QUESTION}{number}", ANSWER) for number in range(5)]
    bad = [pair("嗯", ANSWER), pair(QUESTION, ""), pair(QUESTION, "烫烫烫烫烫烫烫烫烫烫烫烫" + ANSWER)]
    write_shards(tmp_path, "ingest", [*good, *bad], good[:1], [])
    summary = filter_pairs(tmp_path, FilterSettings(), ONE)
    assert (summary.rows_in, summary.rows_out, summary.shards) == (9, 6, 3)
    kept, thrown = read(tmp_path, "filter"), read(tmp_path, "filter/rejected")
    assert sorted(kept["pair_id"]) == sorted(row["pair_id"] for row in [*good, good[0]])
    assert dict(thrown.select("pair_id", "reason").iter_rows()) == {
        bad[0]["pair_id"]: "query_length",
        bad[1]["pair_id"]: "empty_side",
        bad[2]["pair_id"]: "mojibake",
    }
    assert thrown.filter(reason="query_length")["detail"].to_list() == ["1 < 2"]
    assert summary.rejected == Counter(thrown["reason"].to_list())


def test_every_shard_adds_up(tmp_path: Path, pair, write_shards) -> None:
    rows = [pair(f"{QUESTION}{number}", ANSWER * (number % 3)) for number in range(60)]
    write_shards(tmp_path, "ingest", *(rows[start::4] for start in range(4)))
    filter_pairs(tmp_path, FilterSettings(), Engine(workers=2))
    for shard in sorted((tmp_path / "filter").glob("part-*.parquet")):
        footer = read_footer(shard)
        rejected = pl.read_parquet(shard.parent / "rejected" / shard.name)
        assert footer.rows_in == footer.rows_out + rejected.height == 15
        assert footer.rows_out == pl.read_parquet(shard).height
        assert footer.rejected == Counter(rejected["reason"].to_list())


def test_personal_data_is_masked_and_counted(tmp_path: Path, pair, write_shards, read) -> None:
    mail = pair(
        QUESTION, ANSWER + "联系 13812345678 或 name@example.com。", negatives=["请写信到 a@example.com 来", ANSWER]
    )
    write_shards(tmp_path, "ingest", [mail])
    filter_pairs(tmp_path, FilterSettings(), ONE)
    [row] = read(tmp_path, "filter").to_dicts()
    assert row["positive"] == ANSWER + "联系 [手机号] 或 [邮箱]。"
    assert row["negatives"] == ["请写信到 [邮箱] 来", ANSWER]
    assert row["pair_id"] == mail["pair_id"]
    masked = read_footer(tmp_path / "filter" / "part-00000.parquet").notes["masked"]
    assert {kind: count for kind, count in masked.items() if count} == {"mobile": 1, "email": 2}

    filter_pairs(tmp_path, FilterSettings(mask=False), ONE)
    assert read(tmp_path, "filter")["positive"].to_list() == [mail["positive"]]


def test_a_leaked_title_is_cut(tmp_path: Path, pair, write_shards, read) -> None:
    title = "北京秋天的红叶"
    rows = [
        pair(title, f"{title}\n{ANSWER}", format="title_content"),
        pair(title, f"{title}\n{ANSWER}", format="question_answer", source="other"),
        pair(title, f"{title}：\n短", format="title_content"),
    ]
    write_shards(tmp_path, "ingest", rows)
    filter_pairs(tmp_path, FilterSettings(), ONE)
    assert read(tmp_path, "filter")["positive"].to_list() == [ANSWER, f"{title}\n{ANSWER}"]
    assert read(tmp_path, "filter/rejected")["reason"].to_list() == ["title_leak"]


def test_only_what_changed_is_done_again(tmp_path: Path, pair, write_shards) -> None:
    write_shards(tmp_path, "ingest", [pair(QUESTION, ANSWER)], [pair(QUESTION, "嗯")])
    assert filter_pairs(tmp_path, FilterSettings(), ONE).skipped == 0
    assert filter_pairs(tmp_path, FilterSettings(), ONE).skipped == 2
    lenient = FilterSettings(rules={"positive_length": 1, "alphanumeric_ratio": False})
    summary = filter_pairs(tmp_path, lenient, ONE)
    assert (summary.skipped, summary.rows_out) == (0, 2)
    write_shards(tmp_path, "ingest", [pair(QUESTION, ANSWER)], [pair(QUESTION + "吗", ANSWER)])
    assert filter_pairs(tmp_path, lenient, ONE).skipped == 1


def test_blocked_words_and_domains(tmp_path: Path, pair, write_shards, read) -> None:
    words, domains = tmp_path / "words.txt", tmp_path / "domains.txt"
    words.write_text("赌场\r\n\n  Casino \n", encoding="utf-8-sig")  # as a Windows editor saves it
    domains.write_text("spam.example\n")
    rows = [
        pair(QUESTION, ANSWER),
        pair(QUESTION, ANSWER + "线上赌场"),
        pair(QUESTION, ANSWER + "CASINO"),
        pair(QUESTION, ANSWER + "去赌", meta='{"url":"https://www.spam.example/a"}'),
        pair(QUESTION, ANSWER + "不", meta='{"url":"https://notspam.example/a"}'),
    ]
    write_shards(tmp_path, "ingest", rows)
    settings = FilterSettings(blocked_words=str(words), blocked_domains=str(domains))
    assert filter_pairs(tmp_path, settings, ONE).rejected == {"blocked_words": 2, "blocked_domains": 1}
    assert read(tmp_path, "filter")["pair_id"].to_list() == [rows[0]["pair_id"], rows[4]["pair_id"]]

    words.write_text("红叶")
    assert filter_pairs(tmp_path, settings, ONE).rejected["blocked_words"] == 5
    words.write_bytes("红叶".encode("gb18030"))
    for path in (str(words), str(tmp_path / "nowhere.txt")):
        with pytest.raises(RecipeError, match=r"blocked_words: .*\.txt can't be read as UTF-8 text"):
            filter_pairs(tmp_path, FilterSettings(blocked_words=path), ONE)


def test_an_unknown_rule_names_the_nearest(tmp_path: Path, pair, write_shards) -> None:
    write_shards(tmp_path, "ingest", [pair(QUESTION, ANSWER)])
    with pytest.raises(RecipeError, match=r"^filter\.rules: .* 'han_ration'; did you mean 'han_ratio'\?$"):
        filter_pairs(tmp_path, FilterSettings(rules={"han_ration": 0.5}), ONE)


def test_a_source_is_over_its_category_is_over_the_rules(tmp_path: Path, pair, write_shards, read) -> None:
    kinds = [("one", "web_page"), ("two", "web_page"), ("three", "web_page"), ("four", "news")]
    rows = [
        pair(QUESTION + "吗" * number, "秋天" * length, source=source, category=category)
        for number in range(3)
        for length in (2, 3, 4, 5)
        for source, category in kinds
    ]
    write_shards(tmp_path, "ingest", rows, rows[::-1])  # all groups in one shard
    settings = FilterSettings(
        rules={"positive_length": 6},
        categories={"web_page": {"positive_length": 8}},
        sources={"two": {"positive_length": 10}, "three": {"positive_length": False}},
    )
    assert filter_pairs(tmp_path, settings, ONE).rejected == {"positive_length": 2 * 3 * (2 + 3 + 0 + 1)}
    least = {"one": 8, "two": 10, "three": 0, "four": 6}
    kept = [row["pair_id"] for row in rows if len(row["positive"]) >= least[row["source"]]]
    assert read(tmp_path, "filter")["pair_id"].to_list() == [*kept, *kept[::-1]]  # in the order they came
    details = read(tmp_path, "filter/rejected").filter(source="two")["detail"].unique().sort()
    assert details.to_list() == ["4 < 10", "6 < 10", "8 < 10"]


def test_true_is_a_rules_own_threshold_again(tmp_path: Path, pair, write_shards) -> None:
    write_shards(tmp_path, "ingest", [pair(QUESTION, "好", source=source) for source in ("one", "two")])
    settings = FilterSettings(rules={"positive_length": False}, sources={"two": {"positive_length": True}})
    assert filter_pairs(tmp_path, settings, ONE).rows_out == 1


def test_a_source_may_be_left_unfiltered(tmp_path: Path, pair, write_shards, read) -> None:
    write_shards(tmp_path, "ingest", [pair("", "", source=source) for source in ("one", "two")])
    off = dict.fromkeys(RULES, False)
    filter_pairs(tmp_path, FilterSettings(sources={"two": off}), ONE)
    assert read(tmp_path, "filter")["source"].to_list() == ["two"]


def test_only_the_shards_that_a_threshold_touches_are_done_again(tmp_path: Path, pair, write_shards) -> None:
    places = [("one", "web_page"), ("two", "web_page"), ("three", "news")]
    write_shards(tmp_path, "ingest", *([pair(QUESTION, ANSWER, source=s, category=c)] for s, c in places))
    words = tmp_path / "words.txt"
    words.write_text("赌场")

    def skipped(**settings) -> int:
        return filter_pairs(tmp_path, FilterSettings.model_validate(settings), ONE).skipped

    assert skipped() == 0
    assert skipped(sources={"one": {"han_ratio": 0.5}}) == 2
    assert skipped(sources={"one": {"han_ratio": 0.5}, "two": {"query_length": 2}}) == 3  # 2 is the default
    assert skipped(sources={"one": {"han_ratio": 0.5}}, categories={"web_page": {"han_ratio": 0.5}}) == 2
    assert skipped(categories={"web_page": {"han_ratio": 0.5}}) == 3
    assert skipped() == 1
    assert skipped(categories={"academic_paper": {"han_ratio": 0.5}}) == 3
    unblocked = {"one": {"blocked_words": False}}
    assert skipped(blocked_words=str(words), sources=unblocked) == 1
    words.write_text("红叶")
    assert skipped(blocked_words=str(words), sources=unblocked) == 1
    assert skipped(blocked_words=str(words)) == 2
    assert skipped(blocked_words=str(words), mask=False) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"categories": {"web_page": {"han_ration": 0.5}}}, r"filter\.categories\.web_page: .*'han_ratio'"),
        ({"sources": {"lctt": {"repeated_ngram": 0.5}}}, r"filter\.sources\.lctt: .*'repeated_ngrams'"),
        ({"sources": {"lcct": {"han_ratio": 0.5}}}, r"filter\.sources: no source is called 'lcct'; .* 'lctt'"),
    ],
)
def test_unknown_names_name_the_nearest(tmp_path: Path, settings, message: str, pair, write_shards) -> None:
    write_shards(tmp_path, "ingest", [pair(QUESTION, ANSWER, source="lctt")], [pair(QUESTION, ANSWER, source="csl")])
    with pytest.raises(RecipeError, match=message):
        filter_pairs(tmp_path, FilterSettings.model_validate(settings), ONE)


def test_a_source_in_which_nothing_was_found_is_known(tmp_path: Path, pair, write_shards) -> None:
    write_shards(tmp_path, "ingest", [pair(QUESTION, ANSWER)])
    (tmp_path / "recipe.yaml").write_text("sources: [{name: empty, files: none.txt, read: text}]")
    assert filter_pairs(tmp_path, FilterSettings(sources={"empty": {"han_ratio": 0.5}}), ONE).rows_out == 1


def test_groups_of_a_shard_without_rows(tmp_path: Path, pair, write_shards) -> None:
    write_shards(
        tmp_path,
        "ingest",
        [],
        [pair(QUESTION, ANSWER, source=s, category=c) for s, c in (("b", "news"), ("a", "news"))],
    )
    first, second = sorted((tmp_path / "ingest").glob("*.parquet"))
    assert read_groups(first) == []
    assert read_groups(second) == [("a", "news"), ("b", "news")]
