"""Clusters against brute force over sets of shingle strings."""

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conan_embedding.pipeline.dedup import blocks
from conan_embedding.pipeline.dedup import clusters as clustering
from conan_embedding.pipeline.dedup.blocks import compute_similarities
from conan_embedding.pipeline.dedup.clusters import COMPARED, HEADS, Clusters, Pairs, find_clusters, find_row_starts
from conan_embedding.pipeline.dedup.lsh import NO_BUCKET, choose_bands, hash_bands
from conan_embedding.pipeline.dedup.minhash import signatures, text_hashes
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.engine.stage import StageError
from hypothesis import example, given
from hypothesis import strategies as st
from properties import max_examples

ONE = Engine(workers=1)
HAN = [chr(0x4E00 + i) for i in range(3000)]
BANDS, ROWS = choose_bands(0.92, 0.7)

Bands = Sequence[Sequence[int]] | np.ndarray


def shingles(text: str) -> set[str]:
    width = 3 if len(text) < 50 else 5
    return {text[i : i + width] for i in range(max(len(text) - width + 1, 1))} - {""}


def similarity(left: str, right: str) -> float:
    a, b = shingles(left), shingles(right)
    return len(a & b) / len(a | b) if a | b else 0.0


def edited(text: str, share: float, dice: random.Random) -> str:
    """Return the text with a share of its characters replaced, doubled or dropped."""
    letters = list(text)
    for place in dice.sample(range(len(letters)), int(share * len(letters))):
        letters[place] = dice.choice([dice.choice(HAN), letters[place] * 2, ""])
    return "".join(letters)


def corpus(shortest: int, longest: int, originals: int, edits: float = 0.08) -> list[str]:
    """Make random Chinese texts, each with up to four edited copies, and shuffle them."""
    dice = random.Random(7)
    texts = []
    for _ in range(originals):
        texts.append("".join(dice.choices(HAN, k=dice.randint(shortest, longest))))
        texts += [edited(texts[-1], dice.uniform(0, edits), dice) for _ in range(dice.randint(0, 4))]
    dice.shuffle(texts)
    return texts


def alike_pairs(texts: Sequence[str], threshold: float) -> list[tuple[int, int]]:
    """List all pairs of rows with this similarity or more, found by the shingles that they share."""
    holders = defaultdict(list)
    sets = [shingles(text) for text in texts]
    for row, mine in enumerate(sets):
        for shingle in mine:
            holders[shingle].append(row)
    shared = {pair for rows in holders.values() for pair in itertools.combinations(rows, 2)}
    return sorted((a, b) for a, b in shared if len(sets[a] & sets[b]) >= threshold * len(sets[a] | sets[b]))


def components(n: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Return the smallest row of each row's component."""
    graph = nx.Graph(edges)
    graph.add_nodes_from(range(n))
    smallest = {row: min(rows) for rows in nx.connected_components(graph) for row in rows}
    return [smallest[row] for row in range(n)]


def signed(work: Path, texts: Sequence[str], bands: Bands | None = None, shards: int = 1) -> Pairs:
    """Write texts as the positives of filtered shards, and their signatures.

    `bands` replaces the band hashes, one list per band. If there are several shards, the first and the last are empty.
    """
    work.mkdir(parents=True, exist_ok=True)
    column = pa.array(texts, pa.large_string())
    hashes = hash_bands(signatures(column), BANDS, ROWS).T if bands is None else np.array(bands, np.uint64)
    columns = {f"positive_band_{band:02}": each for band, each in enumerate(hashes)}
    table = pa.table({"positive_hash": text_hashes(column), **columns})
    cuts = np.linspace(0, len(texts), shards + 1).astype(int)
    if shards > 1:
        cuts[1], cuts[-2] = 0, len(texts)
    filtered, own = [], []
    for number, (start, stop) in enumerate(itertools.pairwise(cuts.tolist())):
        filtered.append(work / f"filtered_{number}.parquet")
        own.append(work / f"signed_{number}.parquet")
        pq.write_table(pa.table({"positive": column[start:stop]}), filtered[-1], row_group_size=1000)
        pq.write_table(table[start:stop], own[-1])
    return Pairs(tuple(filtered), tuple(own), find_row_starts(filtered), work)


def found(
    pairs: Pairs,
    bands: int = BANDS,
    threshold: float = 0.7,
    similar: Sequence[bool] | None = None,
    engine: Engine = ONE,
) -> Clusters:
    alike = np.ones(pairs.rows, np.bool_) if similar is None else np.array(similar)
    return find_clusters(pairs, "positive", alike, bands, threshold, engine)


def labels(result: Clusters) -> list[int]:
    """Return the smallest row of each row's cluster."""
    _, first, inverse = np.unique(np.load(result.ids), return_index=True, return_inverse=True)
    return first[inverse].tolist()


def together(work: Path, texts: Sequence[str], threshold: float = 0.7) -> list[int]:
    """Return the clusters of texts that are all in one bucket."""
    return labels(found(signed(work, texts, [[9 << 40] * len(texts)]), 1, threshold))


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


@pytest.fixture(scope="module")
def mixed() -> list[str]:
    """Make texts of every length, some of them equal, some without letters."""
    texts = [*corpus(20, 120, 30), *corpus(200, 300, 12), "", "。。。", "。。。", "", "地"]
    texts += texts[:20]
    random.Random(1).shuffle(texts)
    return texts


SMALL = {"_BUCKET_ROWS": 40, "_EDGES": 5, "_SLICE": 4, "_BLOCK_BYTES": 3_000}


@pytest.mark.parametrize("shards", [1, 9])
@pytest.mark.parametrize("small", [{}, *({name: value} for name, value in SMALL.items()), SMALL])
def test_the_parts_of_the_work_change_nothing(
    tmp_path: Path, mixed: list[str], monkeypatch: pytest.MonkeyPatch, small: dict[str, int], shards: int
) -> None:
    bands = hash_bands(signatures(pa.array(mixed)), BANDS, ROWS).T
    coarse = [1 + len(text) // 10 << 40 for text in mixed]  # buckets whose leaders are similar to few of their members
    hashes = np.stack([*bands, np.array(coarse, np.uint64)])
    alike = [(a, b) for a, b in alike_pairs(mixed, 0.7) if (hashes[:, a] == hashes[:, b]).any()]
    alike += [(mixed.index(text), row) for row, text in enumerate(mixed)]
    for name, value in small.items():
        monkeypatch.setattr(clustering, name, value)
    result = found(signed(tmp_path, mixed, hashes, shards), len(hashes))
    assert labels(result) == components(len(mixed), alike)
    assert np.load(result.equals).tolist() == [mixed.index(text) for text in mixed]
    parts = sorted(tmp_path.glob("positive_band_00_*.npy"))
    assert len(parts) == 1 + len(mixed) // small.get("_BUCKET_ROWS", 10**9)
    of_distinct_texts = hashes[0, [mixed.index(text) for text in dict.fromkeys(mixed) if text]]
    edges = len(of_distinct_texts) - len(np.unique(of_distinct_texts))
    assert sum(np.load(part).shape[1] for part in parts) == edges
    assert (len(result.blocks) > 1) == ("_BLOCK_BYTES" in small and shards > 1)


def test_processes_change_nothing(tmp_path: Path, mixed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    alone = found(signed(tmp_path / "one", mixed, shards=5))
    monkeypatch.setattr(clustering, "_FEW", 0)
    monkeypatch.setattr(clustering, "_BLOCK_BYTES", 20_000)
    both = found(signed(tmp_path / "two", mixed, shards=5), engine=Engine(workers=2))
    assert np.load(both.ids).tolist() == np.load(alone.ids).tolist()


def test_work_that_is_done_again_changes_nothing(
    tmp_path: Path, mixed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work is repeated if a worker dies after its last write."""
    once = found(signed(tmp_path / "once", mixed))
    call_all = blocks.call_all

    def twice(*call: Any) -> None:
        call_all(*call)
        call_all(*call)

    for module in (blocks, clustering):
        monkeypatch.setattr(module, "call_all", twice)
    assert np.load(found(signed(tmp_path / "twice", mixed)).ids).tolist() == np.load(once.ids).tolist()


def test_few_rows_start_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process(*_: object) -> None:
        raise AssertionError("a process")

    monkeypatch.setattr("conan_embedding.pipeline.engine.local._run_in_processes", no_process)
    assert labels(found(signed(tmp_path, ["天地人和春夏秋冬"] * 3), engine=Engine(workers=2))) == [0, 0, 0]


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
    assert clustering._find_equal_texts(hashes, similar).tolist() == [rows.index(row) for row in rows]


def test_similarities_of_any_rows_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "_BLOCK_BYTES", 4_000)
    texts = [*dict.fromkeys(corpus(20, 120, 25))]
    pairs = signed(tmp_path, texts, [[9 << 40] * len(texts)], shards=7)
    written = found(pairs, 1).blocks
    assert len(written) > 3
    left, right = np.random.default_rng(0).integers(0, len(texts), (2, 500))
    exact = np.array([similarity(texts[a], texts[b]) for a, b in zip(left, right, strict=True)])
    np.testing.assert_array_equal(compute_similarities(tmp_path, written, left, right, 0.0, ONE), exact)
    found_alike = compute_similarities(tmp_path, written, left, right, 0.5, ONE)
    np.testing.assert_array_equal(found_alike, np.where(exact >= 0.5, exact, 0))
    nothing = np.empty(0, np.int64)
    assert compute_similarities(tmp_path, written, nothing, nothing, 0.7, ONE).tolist() == []


def test_what_failed_is_named(tmp_path: Path) -> None:
    pairs = signed(tmp_path, ["天地人和"] * 2)
    pairs.filtered[0].write_bytes(b"damaged")
    with pytest.raises(StageError, match=r"filtered_0\.parquet: ArrowInvalid"):
        found(pairs)


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
