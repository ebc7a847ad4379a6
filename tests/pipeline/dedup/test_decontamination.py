"""Which pairs contain a text of an evaluation set: near-duplicates and contained queries, against brute force."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from conan_embedding.pipeline.dedup import decontamination
from conan_embedding.pipeline.dedup.decontamination import (
    CONTAINED,
    SHORTEST,
    HeldOut,
    find_containing,
    find_evaluation_files,
    find_nearest,
    fingerprint_set,
    mark_contaminated,
    prepare_held_out,
    read_held_out,
)
from conan_embedding.pipeline.dedup.signatures import SIDES, band_columns, hash_text_bands, sign_shard
from conan_embedding.schemas.errors import CorpusError, RecipeError
from hypothesis import example, given
from hypothesis import strategies as st
from properties import max_examples

HAN = [chr(0x4E00 + place) for place in range(2000)]
BANDS, ROWS = 21, 6

Told = list[tuple[int, str]]


def text(seed: int, length: int = 80) -> str:
    return "".join(random.Random(seed).choices(HAN, k=length))


def near(original: str, place: int = 10) -> str:
    return original[:place] + "龘" + original[place + 1 :]


def similarity(left: str, right: str) -> float:
    n = 5 if min(len(left), len(right)) >= 50 else 3
    a, b = ({each[i : i + n] for i in range(len(each) - n + 1)} for each in (left, right))
    return len(a & b) / len(a | b)


def lines(folder: Path, name: str, records: Sequence[dict]) -> Path:
    """Write an evaluation set as a JSONL file."""
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), "utf-8")
    return file


def known(folder: Path, texts: Sequence[tuple[str, str, bool]]) -> HeldOut:
    """Prepare evaluation texts for comparison: (text, set, asked)."""
    schema = {"text": pl.String, "set": pl.String, "asked": pl.Boolean}
    pl.DataFrame(texts, schema, orient="row").write_parquet(folder / "known.parquet")
    prepare_held_out.cache_clear()
    return prepare_held_out(folder / "known.parquet", BANDS, ROWS)


@pytest.fixture
def marked(tmp_path: Path, write_shards) -> Callable[..., Told]:
    """Return a function that lists (row, detail) of the pairs that evaluation files contaminate."""

    def mark(rows: Sequence[dict], *files: Path, start: int = 0) -> Told:
        write_shards(tmp_path, "filter", rows)
        filtered, signed = tmp_path / "filter/part-00000.parquet", tmp_path / "signed.parquet"
        sign_shard(filtered, SIDES, BANDS, ROWS, "f", signed)
        theirs, found = tmp_path / "known.parquet", tmp_path / "found.parquet"
        read_held_out(files).write_parquet(theirs)
        prepare_held_out.cache_clear()
        mark_contaminated(filtered, signed, theirs, start, BANDS, ROWS, 0.7, found)
        frame = pl.read_parquet(found)
        assert frame.schema == {"row": pl.Int64, "detail": pl.String}
        return sorted(frame.rows())

    return mark


def test_a_near_duplicate_of_either_side_in_either_side(tmp_path: Path, pair, marked) -> None:
    exam = lines(tmp_path, "exam", [{"query": text(1), "positive": text(2), "meta": "{}"}])
    rows = [
        pair(near(text(1)), text(11)),
        pair(text(12), near(text(1))),
        pair(near(text(2)), text(13)),
        pair(text(14), text(2)[:40] + "，" + text(2)[40:]),
        pair(text(15), text(1)[:40] + text(2)[40:]),
        pair("", "。"),
    ]
    shown = round(similarity(near(text(1)), text(1)), 3)
    assert shown == round(similarity(near(text(2)), text(2)), 3) > 0.7
    assert marked(rows, exam) == [
        (0, f"query exam: {shown}"),
        (1, f"positive exam: {shown}"),
        (2, f"query exam: {shown}"),
        (3, "positive exam: 1.0"),
    ]


def test_a_row_is_told_of_once_with_its_number_in_the_corpus(tmp_path: Path, pair, marked, monkeypatch) -> None:
    monkeypatch.setattr("conan_embedding.pipeline.corpus.shard_writer.ROW_GROUP", 2)
    exam = lines(tmp_path, "exam", [{"query": text(1), "positive": text(2)}])
    rows = [pair(text(20 + row), text(40 + row)) for row in range(7)]
    rows[3] = pair(text(2), text(1) + text(99))
    rows[6] = pair(text(60), "问：" + text(1) + "答：" + text(61))
    assert marked(rows, exam, start=1000) == [
        (1003, "query exam: 1.0"),
        (1006, f"positive exam: contains {text(1)}"),
    ]


def test_a_query_of_thirteen_letters_is_not_contained_and_one_of_twelve_may_be(tmp_path: Path, pair, marked) -> None:
    thirteen, twelve = text(1, 13), text(2, 12)
    exam = lines(
        tmp_path,
        "exam",
        [
            {"query": "，".join(thirteen) + "？", "positive": text(3)},
            {"query": twelve + "？？？", "positive": text(4, 30)},
        ],
    )
    rows = [
        pair(text(10) + thirteen[:5] + "。\n" + thirteen[5:] + text(11), text(12)),
        pair(text(13), thirteen + text(14)),
        pair(text(15) + twelve + text(16), text(17)),
        pair(text(18) + thirteen[:-1] + text(19), text(20)),
        pair(text(21), text(22) + text(4, 30) + text(23)),  # a positive may be contained
    ]
    assert marked(rows, exam) == [
        (0, f"query exam: contains {thirteen}"),
        (1, f"positive exam: contains {thirteen}"),
    ]


def test_a_query_is_not_contained_in_two_neighbours(tmp_path: Path, pair, marked) -> None:
    asked = text(1, 20)
    exam = lines(tmp_path, "exam", [{"query": asked}])
    rows = [
        pair(text(10) + asked[:10], text(11) + asked[:19]),
        pair(asked[10:] + text(12), asked[19:] + text(13)),
        pair(text(14), text(15) + asked),
        pair(asked + text(16), text(17)),
    ]
    assert marked(rows, exam) == [
        (2, f"positive exam: contains {asked}"),
        (3, f"query exam: contains {asked}"),
    ]


def test_texts_of_less_than_four_letters_tell_nothing(tmp_path: Path, pair, marked) -> None:
    exam = lines(
        tmp_path,
        "exam",
        [
            {"query": "慢慢来", "positive": "谢谢！！！"},
            {"query": "。。。。。", "positive": "。。"},
            {"query": "好好学习", "positive": None},
        ],
    )
    assert SHORTEST == 4
    rows = [pair("慢慢来", "谢谢"), pair("。。", text(1)), pair(text(2), "好好，学习！")]
    assert marked(rows, exam) == [(2, "positive exam: 1.0")]


def test_a_set_of_nothing_but_short_texts(tmp_path: Path, pair, marked) -> None:
    exam = lines(tmp_path, "exam", [{"query": "好", "positive": "行"}])
    assert marked([pair("好", "行"), pair(text(1), text(2))], exam) == []
    assert marked([], exam) == []


def test_class_names_are_nobodys_text(tmp_path: Path, pair, marked) -> None:
    name = "中国特色社会主义市场经济体制改革"
    assert len(name) >= CONTAINED
    records = [{"query": text(1), "positive": name, "task": "classification"}]
    labels = lines(tmp_path, "labels", records)
    exam = lines(tmp_path, "exam", [{"query": name, "positive": text(3)}])
    rows = [
        pair(text(10), name, "topics", "classification"),
        pair(name, text(11)),
        pair(near(text(1)), name, "topics", "classification"),
    ]
    assert [row for row, _ in marked(rows, labels)] == [2]
    assert [row for row, _ in marked(rows, exam)] == [1]


def test_the_set_of_the_nearest_text_is_named(tmp_path: Path) -> None:
    mine = text(1)
    theirs = known(
        tmp_path,
        [
            (near(near(mine, 20), 60), "far", False),
            (near(mine, 40), "second", True),
            (text(5), "unlike", True),
            (near(mine, 10), "equal to the second", True),
        ],
    )
    assert similarity(mine, near(mine, 10)) == similarity(mine, near(mine, 40))
    texts = pa.array([text(7), mine, "", near(mine, 10)], pa.large_string())
    hashes = pl.DataFrame(list(hash_text_bands(texts, BANDS, ROWS)), schema=band_columns("query", BANDS))
    found = find_nearest(texts, hashes, theirs, 0.7).sort("row")
    assert found.columns == ["row", "other", "similarity"]
    assert found.rows() == [(1, 1, similarity(mine, near(mine, 40))), (3, 3, 1.0)]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_the_nearest_of_brute_force(tmp_path: Path, threshold: float) -> None:
    dice = random.Random(2)
    originals = [text(seed, dice.randint(60, 120)) for seed in range(60)]

    def edited(one: str) -> str:
        for _ in range(dice.randint(0, 3)):
            one = near(one, dice.randrange(len(one)))
        return one

    others = [*dict.fromkeys(edited(dice.choice(originals)) for _ in range(150))]
    texts = pa.array([edited(dice.choice(originals)) for _ in range(100)], pa.large_string())
    theirs = known(tmp_path, [(other, "exam", False) for other in others])
    ours = hash_text_bands(texts, BANDS, ROWS)
    meet = (ours[:, :, None] == hash_text_bands(pa.array(others, pa.large_string()), BANDS, ROWS)[:, None]).any(axis=0)
    expected = []
    for row, one in enumerate(texts.to_pylist()):
        ranked = sorted((-similarity(one, others[other]), other) for other in meet[row].nonzero()[0].tolist())
        if ranked and -ranked[0][0] >= threshold:
            expected.append((row, ranked[0][1], -ranked[0][0]))
    found = find_nearest(texts, pl.DataFrame(list(ours), schema=band_columns("query", BANDS)), theirs, threshold)
    assert found.sort("row").rows() == expected
    assert len(expected) > 10


def test_a_bucket_of_many_evaluation_texts_is_met_at_its_head(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(decontamination, "_SHARED", 3)
    mine = text(1)
    theirs = known(tmp_path, [(mine + HAN[place], "exam", False) for place in range(20)])
    assert max(band["hash"].value_counts()["count"].max() for band in theirs.bands) == 3
    texts = pa.array([mine], pa.large_string())
    hashes = pl.DataFrame(list(hash_text_bands(texts, BANDS, ROWS)), schema=band_columns("query", BANDS))
    assert find_nearest(texts, hashes, theirs, 0.7).rows() == [(0, 0, similarity(mine, mine + HAN[0]))]


LETTERS = st.sampled_from("天天天天天地")


@max_examples(60)
@given(
    st.lists(st.text(LETTERS, max_size=60), max_size=8),
    st.lists(st.text(LETTERS, min_size=11, max_size=17), min_size=1, max_size=6, unique=True),
    st.integers(0, 3),
)
@example(["地", "天" * 30, "天" * 13, ""], ["天" * 12, "天" * 13, "天" * 14, "天" * 15], 1)  # they overlap
def test_what_contains_queries_against_brute_force(
    tmp_path: Path, texts: list[str], queries: list[str], skipped: int
) -> None:
    theirs = known(tmp_path, [(query, f"set{place}", place % 4 > 0) for place, query in enumerate(queries)])
    asked = [(query, place) for place, query in enumerate(queries) if place % 4 and len(query) >= CONTAINED]
    column = pa.array(texts, pa.large_string())[skipped:]  # a slice does not start at the buffer's first byte
    expected = {
        (row, f"set{place}", f"contains {query}")
        for row, one in enumerate(texts[skipped:])
        for query, place in asked
        if query in one
    }
    found = find_containing(column, theirs)
    assert found.columns == ["row", "set", "why"]
    assert set(found.rows()) == expected


def test_texts_of_sets_are_told_once_as_they_are_compared(tmp_path: Path) -> None:
    first = lines(tmp_path, "first", [{"query": "北京，天气？", "positives": ["晴转多云哦", "ＡＢＣＤ"]}])
    second = tmp_path / "second.parquet"
    pl.DataFrame({"text_a": ["晴转！多云哦", None], "text_b": ["另外一句", "北京天气"]}).write_parquet(second)
    haystack = {"query": "", "positive": "haystack", "task": "passage"}
    third = lines(tmp_path, "third", [haystack, {"query": "abcd", "text": "no text of a pair"}])
    assert read_held_out([first, second, third]).rows() == [
        ("北京天气", "first", True),
        ("晴转多云哦", "first", False),
        ("abcd", "first", True),  # a query of the third
        ("另外一句", "second", False),
    ]


def test_passages_of_a_haystack_are_left_out(tmp_path: Path, pair, write_shards) -> None:
    rows = [
        pair("第一个问题", "第一个回答", "exam", "retrieval"),
        pair("", "只是一段文字", "exam", "passage"),
        pair("第二个问题", "第二个回答", "exam", "retrieval"),
    ]
    classes = [pair("体育新闻一则", "体育类别", "labels", "classification")]
    write_shards(tmp_path, "evaluation", rows, classes, [])
    files = find_evaluation_files(tmp_path, True)
    assert [file.name for file in files] == [f"part-0000{number}.parquet" for number in range(3)]
    assert read_held_out(files).rows() == [
        ("第一个问题", "exam", True),
        ("第二个问题", "exam", True),
        ("第一个回答", "exam", False),
        ("第二个回答", "exam", False),
        ("体育新闻一则", "labels", True),
    ]


def test_which_sets_are_kept_out(tmp_path: Path, pair, write_shards) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "metrics.json").touch()  # which `conan evaluate` leaves
    assert find_evaluation_files(tmp_path, True) == find_evaluation_files(tmp_path, False) == []
    write_shards(tmp_path, "evaluation", [pair("问", "答", "exam")], [pair("问", "答", "quiz")])
    exam, quiz = (tmp_path / f"evaluation/part-0000{number}.parquet" for number in range(2))
    other = lines(tmp_path, "other", [{"query": "问"}])
    assert find_evaluation_files(tmp_path, False) == []
    assert find_evaluation_files(tmp_path, True) == [exam, quiz]
    assert find_evaluation_files(tmp_path, ["quiz", str(other)]) == [quiz, other]
    with pytest.raises(
        RecipeError, match=r"lost is neither .* nor an evaluation set of the corpus; choose from exam, quiz$"
    ):
        find_evaluation_files(tmp_path, ["lost"])
    (tmp_path / "evaluation/.incomplete").touch()
    with pytest.raises(CorpusError, match="interrupted"):
        find_evaluation_files(tmp_path, True)


def test_what_decides_the_texts_of_a_set(tmp_path: Path, pair, write_shards) -> None:
    rows = [[pair("问", "答", "exam")], [pair("问", "对", "exam")]]
    write_shards(tmp_path, "evaluation", *rows)
    one, other = sorted((tmp_path / "evaluation").glob("*.parquet"))
    before = fingerprint_set(one)
    assert before != fingerprint_set(other)
    write_shards(tmp_path, "evaluation", *rows)  # the same again
    assert fingerprint_set(one) == before
    file = lines(tmp_path, "exam", [{"query": "问"}])
    before = fingerprint_set(file)
    assert fingerprint_set(file) == before
    file.write_text('{"query": "另外的问"}', "utf-8")
    assert fingerprint_set(file) != before


def test_a_users_file_may_lie_in_a_folder_called_evaluation(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    file = lines(tmp_path / "evaluation", "dev", [{"query": "这是一个用来评测的问题"}, {"query": 20241231}])
    assert fingerprint_set(file)
    assert sorted(read_held_out([file])["set"]) == ["dev", "dev"]


@pytest.mark.parametrize("data", [b"\xef\xbb\xbf{}", b"[1]", '{"query": "问"}'.encode("gb18030"), b""])
def test_a_file_that_can_not_be_read_is_named(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "dev.jsonl"
    file.write_bytes(data)
    with pytest.raises(
        RecipeError, match=r"decontaminate: .*dev.jsonl (can't be read as JSONL|has none of the columns)"
    ):
        read_held_out([file])
