"""Clusters against brute force over sets of shingle strings."""

import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from clustered_texts import (
    HAN,
    alike_pairs,
    components,
    corpus,
    found,
    labels,
    signed,
    similarity,
    together,
)
from conan_embedding.pipeline.dedup import blocks, lsh
from conan_embedding.pipeline.dedup import clusters as clustering
from conan_embedding.pipeline.dedup.clusters import COMPARED, HEADS
from conan_embedding.pipeline.dedup.lsh import NO_BUCKET
from conan_embedding.pipeline.dedup.minhash import text_hashes
from hypothesis import example, given
from hypothesis import strategies as st
from properties import max_examples


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record how many pairs each call compares."""
    calls: list[int] = []
    jaccard = blocks.jaccard

    def count(left_sets, left, right_sets, right, threshold):
        calls.append(len(left))
        return jaccard(left_sets, left, right_sets, right, threshold)

    monkeypatch.setattr(blocks, "jaccard", count)
    return calls


def test_a_million_equal_texts_are_not_compared(tmp_path: Path, compared: list[int]) -> None:
    result = found(signed(tmp_path, ["今天天气很好，我们去公园"] * 1_000_000, [[9 << 40] * 1_000_000]), 1)
    assert compared == []
    ids = np.load(result.ids)
    assert (ids == ids[0]).all()
    assert not np.load(result.equals).any()


def test_a_bucket_of_like_texts_is_one_comparison_a_row(tmp_path: Path, compared: list[int]) -> None:
    text = "".join(HAN[:40])
    texts = [text + HAN[row // 2000] + HAN[row % 2000] for row in range(100_000)]
    assert together(tmp_path, texts) == [0] * len(texts)
    assert sum(compared) == len(texts) - 1


def test_a_bucket_of_unlike_texts_is_linear(tmp_path: Path, compared: list[int]) -> None:
    tail = "".join(HAN[:7])
    texts = [HAN[row % 2000] + HAN[row // 2000] + tail for row in range(100_000)]
    assert together(tmp_path, texts, 0.9) == list(range(len(texts)))
    assert sum(compared) < (1 + HEADS) * len(texts)


TEXT = st.text("天地人", max_size=12) | st.sampled_from(["春" * 49, "春" * 50, "春夏" * 26])


@max_examples(60)
@given(st.lists(TEXT, min_size=1, max_size=12, unique=True), st.floats(0.05, 1))
@example(["天地人", "人地天", "地"], 1.0)
@example(["天地人天", "天地人", "天地"], 0.5)
def test_a_small_bucket_is_joined_as_by_brute_force(tmp_path: Path, texts: list[str], threshold: float) -> None:
    pairs = itertools.combinations(range(len(texts)), 2)
    alike = [(a, b) for a, b in pairs if similarity(texts[a], texts[b]) >= threshold]
    assert together(tmp_path, texts, threshold) == components(len(texts), alike)


@pytest.mark.parametrize("size", [COMPARED - 1, COMPARED])
def test_a_false_leader_hides_no_true_pair(tmp_path: Path, size: int) -> None:
    """In the largest bucket of which all pairs are compared, the leader is like no other text."""
    dice = random.Random(0)
    unlike = ["".join(dice.choices(HAN, k=100)) for _ in range(size // 3)]
    texts = ["".join(HAN[:30]), *unlike, *(text + "尾" for text in unlike), *(text + "末" for text in unlike)][:size]
    expected = [0, *((row - 1) % len(unlike) + 1 for row in range(1, len(texts)))]
    assert together(tmp_path, texts) == expected


def test_the_heads_of_a_larger_bucket_hide_no_true_pair(tmp_path: Path) -> None:
    """Texts that are like the leader come first, and do not become heads."""
    dice = random.Random(0)
    leader, *unlike = ("".join(dice.choices(HAN, k=100)) for _ in range(1 + HEADS))
    like = [leader + HAN[place] for place in range(2 * HEADS)]
    texts = [leader, *like, *(text + HAN[place] for place in range(50) for text in unlike)]
    first = 1 + len(like)
    expected = [0] * first + [first + row % HEADS for row in range(50 * HEADS)]
    assert together(tmp_path, texts) == expected


def test_the_heads_of_a_larger_bucket_are_in_trees_of_their_own(tmp_path: Path) -> None:
    """Texts that another band has joined come first, and only one of them becomes a head."""
    dice = random.Random(0)
    leader, joined, other = ("".join(dice.choices(HAN, k=100)) for _ in range(3))
    texts = [leader, *(joined + HAN[place] for place in range(2 * HEADS)), *(other + HAN[place] for place in range(60))]
    expected = [0] + [1] * 2 * HEADS + [1 + 2 * HEADS] * 60
    bands = [[9 << 40] * len(texts), [NO_BUCKET] + [5 << 40] * 2 * HEADS + [NO_BUCKET] * 60]
    assert labels(found(signed(tmp_path, texts, bands), 2)) == expected


def test_a_true_leader_hides_no_true_pair(tmp_path: Path) -> None:
    text = "".join(HAN[:200])
    chain = [text[start : start + 160] for start in (20, 0, 36)]  # the first is similar to both others
    further = text[40:200]  # not similar to the second
    assert [similarity(further, other) >= 0.7 for other in chain] == [True, False, True]
    assert similarity(chain[1], chain[2]) < 0.7
    for texts in itertools.permutations([*chain, further]):
        assert together(tmp_path, texts) == [0, 0, 0, 0]


def test_texts_meet_in_any_band_and_nowhere_else(tmp_path: Path) -> None:
    text = "".join(HAN[:100])
    texts = [text + HAN[200 + row] for row in range(6)]
    a, b, c, d, e = (number << 40 for number in range(1, 6))
    none = NO_BUCKET
    result = found(signed(tmp_path, texts, [[a, b, c, d, e, none], [none, a, d, a, none, none]]), 2)
    assert labels(result) == [0, 1, 2, 1, 4, 5]


def test_few_rows_of_a_shard_are_in_a_bucket(tmp_path: Path) -> None:
    """There are several shards and row groups, some without any row that is compared."""
    text = "".join(HAN[:100])
    texts = [text + HAN[row % 3000] + HAN[row // 3000] for row in range(4_600)]
    band = [(row + 1) << 20 for row in range(len(texts))]
    for row in (1_700, 2_500, 4_599):
        band[row] = 9 << 40
    expected = [1_700 if row in (2_500, 4_599) else row for row in range(len(texts))]
    assert labels(found(signed(tmp_path, texts, [band], 5), 1)) == expected


def test_the_id_is_the_least_hash_of_a_cluster(tmp_path: Path) -> None:
    text = "".join(HAN[:100])
    for texts in ([text, "", text + "尾", "别的一句话", text, ""], [text + "尾", "别的", text, "别的", text]):
        hashes = text_hashes(pa.array(texts)).tolist()
        least = min(each for each, one in zip(hashes, texts, strict=True) if one.startswith(text))
        expected = [least if one.startswith(text) else own for one, own in zip(texts, hashes, strict=True)]
        result = found(signed(tmp_path, texts))
        assert np.load(result.ids).tolist() == expected
        assert np.load(result.equals).tolist() == [texts.index(one) for one in texts]


def test_what_is_not_similar_has_its_equals_alone(tmp_path: Path) -> None:
    text = "".join(HAN[:100])
    texts = [text, text, text + "尾", text + "尾", text, text + "末"]
    similar = [False, True, True, False, False, True]
    result = found(signed(tmp_path, texts), similar=similar)
    assert np.load(result.equals).tolist() == [0, 1, 2, 3, 0, 5]
    one, other, third = text_hashes(pa.array([text, text + "尾", text + "末"])).tolist()
    least = min(one, other, third)
    assert np.load(result.ids).tolist() == [one, least, least, other, one, least]


def test_texts_on_either_side_of_fifty_characters_are_not_compared(tmp_path: Path) -> None:
    text = "".join(HAN[:51])
    assert together(tmp_path, [text[:49], text[:50], text]) == [0, 1, 1]


def test_no_texts_at_all(tmp_path: Path) -> None:
    result = found(signed(tmp_path, [], shards=2))
    assert np.load(result.ids).tolist() == np.load(result.equals).tolist() == []


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 2, 3, 2**61, 2**61 + 1, 2**63 - 1, 2**63 - 2]), st.booleans()), max_size=30
    )
)
def test_equals_are_told_apart_though_their_shortened_hashes_collide(rows: list[tuple[int, bool]]) -> None:
    hashes, similar = np.array([one for one, _ in rows], np.int64), np.array([one for _, one in rows], np.bool_)
    for most in (1 << 25, 5):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(lsh, "PART_ROWS", most)
            assert clustering._find_equal_texts(hashes, similar).tolist() == [rows.index(row) for row in rows]


@pytest.mark.parametrize(
    ("shortest", "longest", "edits"), [(200, 500, 0.055), (20, 49, 0.1)], ids=["documents", "short texts"]
)
def test_recall_and_precision_against_brute_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shortest: int, longest: int, edits: float
) -> None:
    texts = corpus(shortest, longest, 300, edits)[:600]
    joined: set[tuple[int, int]] = set()
    join: Callable[..., None] = clustering._join

    def note(forest, left, right):
        joined.update(zip(left.tolist(), right.tolist(), strict=True))
        join(forest, left, right)

    monkeypatch.setattr(clustering, "_join", note)
    label = labels(found(signed(tmp_path, texts)))
    alike, close = (alike_pairs(texts, threshold) for threshold in (0.7, 0.8))
    assert 150 < len(close) < 0.8 * len(alike)

    def recall(pairs: Sequence[tuple[int, int]]) -> float:
        return float(np.mean([label[a] == label[b] for a, b in pairs]))

    assert recall(alike) >= 0.92
    assert recall(close) >= 0.99
    assert len(joined) > 100
    assert len(joined & set(alike)) >= 0.98 * len(joined)
    # No cluster is larger than its component by brute force.
    coarse = components(len(texts), alike)
    assert len({*zip(label, coarse, strict=True)}) == len(set(label))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("-5的绝对值是多少", "5的绝对值是多少"),
        ("请问这种药一次吃1.5毫克可以吗饭前还是饭后", "请问这种药一次吃15毫克可以吗饭前还是饭后"),
        ("今天的天气真不错我们去公园😀", "今天的天气真不错我们去公园😡"),
        ("这家店的评分是★★★★", "这家店的评分是★★★★★"),
        ("刚开始学c++应该看哪一本书比较好呢", "刚开始学c#应该看哪一本书比较好呢"),
        ("选1 2的人请举手站到左边来排队", "选12的人请举手站到左边来排队"),
    ],
)
def test_short_texts_that_differ_in_signs_alone_are_not_near(tmp_path: Path, left: str, right: str) -> None:
    assert len(set(together(tmp_path / "short", [left, right]))) == 2
    longer = "".join(HAN[:100])
    assert len(set(together(tmp_path / "long", [left + longer, right + longer]))) == 1
    third = right + "呢"  # not in signs alone
    assert similarity(third, right) >= 0.7
    assert len(set(together(tmp_path / "third", [right, third]))) == 1
