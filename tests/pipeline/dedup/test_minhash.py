"""Signatures against datasketch, hashes against scikit-learn's MurmurHash3 and plain Python, Jaccard against sets."""

from itertools import product

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from conan_embedding.pipeline.dedup.minhash import (
    Shingling,
    jaccard,
    shingle_hash,
    shingle_sets,
    signatures,
    text_hashes,
)
from datasketch import MinHash
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.utils import murmurhash3_32

TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("的一是𠀀🀄a"), max_size=70)
HAN = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))


def shingles(text: str | None, ngram: int = 5, short_ngram: int = 3, short_below: int = 50) -> set[str]:
    text = text or ""
    width = short_ngram if len(text) < short_below else ngram
    return {text[i : i + width] for i in range(max(len(text) - width + 1, 1))} - {""}


def reference(text: str | None, **cut: int) -> np.ndarray:
    """Compute a signature with datasketch itself."""
    sketch = MinHash(num_perm=128, scheme="affine32", hashfunc=shingle_hash)
    sketch.update_batch([shingle.encode("utf-32-le") for shingle in shingles(text, **cut)])
    return sketch.hashvalues


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
@example("")
@example("\U0010ffff\U00020000的a")
def test_shingle_hash_is_murmurhash3(shingle: str) -> None:
    block = shingle.encode("utf-32-le")
    assert shingle_hash(block) == murmurhash3_32(block, seed=0, positive=True)


@given(st.lists(st.none() | TEXT, max_size=6))
@example(["", "中", "中文", "𠀀🀄", None, "ab" * 40, "é\x00\n" * 30])
@example([HAN[:49], HAN[:50], HAN[:51], HAN])
def test_signatures_are_datasketch(texts: list[str | None]) -> None:
    result = signatures(pa.array(texts, type=pa.string()))
    assert result.dtype == np.uint32
    assert result.shape == (len(texts), 128)
    for text, signature in zip(texts, result, strict=True):
        np.testing.assert_array_equal(signature, reference(text))


@pytest.mark.parametrize("length", [*range(1, 12), 48, 49, 50, 51, 53, 60])
@pytest.mark.parametrize("cut", [(5, 3, 50), (1, 1, 0), (9, 2, 10), (60, 3, 4)])
def test_signatures_for_each_length_and_cut(length: int, cut: tuple[int, int, int]) -> None:
    texts = [HAN[:length], HAN[length : 2 * length]]
    shingling = Shingling(*cut)
    expected = [reference(text, **shingling._asdict()) for text in texts]
    np.testing.assert_array_equal(signatures(pa.array(texts), shingling), expected)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_every_layout_of_a_column_gives_the_same_signatures(kind: pa.DataType) -> None:
    texts = ["你好，世界", None, "", HAN, "a𠀀" * 30, "tail"]
    whole = pa.array(texts, type=pa.string()).cast(kind)
    expected = np.stack([reference(text) for text in texts])
    chunked = pa.chunked_array([whole[:2], whole[2:2], whole[2:]])
    np.testing.assert_array_equal(signatures(whole), expected)
    np.testing.assert_array_equal(signatures(chunked), expected)
    np.testing.assert_array_equal(signatures(whole[1:5]), expected[1:5])
    np.testing.assert_array_equal(signatures(whole[2:][1:]), expected[3:])
    np.testing.assert_array_equal(signatures(chunked[1:4]), expected[1:4])
    np.testing.assert_array_equal(signatures(pl.Series(texts).to_arrow()), expected)


def test_a_null_owns_no_bytes_of_its_slot() -> None:
    valid, ends, data = pa.array(["secret", "shown"]).buffers()
    hidden = pa.Array.from_buffers(pa.string(), 2, [pa.py_buffer(b"\x02"), ends, data])
    assert valid is None
    assert hidden.to_pylist() == [None, "shown"]
    np.testing.assert_array_equal(signatures(hidden), [reference(""), reference("shown")])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_empty_columns(kind: pa.DataType) -> None:
    for column in (pa.array([], type=kind), pa.chunked_array([], type=kind), pa.array(["a"], type=kind)[1:]):
        assert signatures(column).shape == (0, 128)
        assert shingle_sets(column).offsets.tolist() == [0]


def column_of(pieces: list[bytes]) -> pa.Array:
    """Make a column of strings without checking that they are valid UTF-8."""
    ends = np.cumsum([0, *map(len, pieces)], dtype=np.int32)
    return pa.Array.from_buffers(
        pa.string(), len(pieces), [None, pa.py_buffer(ends.tobytes()), pa.py_buffer(b"".join(pieces))]
    )


def test_broken_utf8_is_read_within_its_text() -> None:
    pieces = [b"\xe4\xb8", b"\xff", b"\x80\x80", b"\xf0", b"ok"]
    together = signatures(column_of(pieces))
    alone = [signatures(column_of([piece])) for piece in pieces]
    np.testing.assert_array_equal(together, np.concatenate(alone))
    np.testing.assert_array_equal(together[-1], reference("ok"))


def test_only_strings_have_signatures() -> None:
    with pytest.raises(TypeError, match="int64"):
        signatures(pa.array([1]))


@given(st.lists(st.none() | TEXT, max_size=6))
@example(["ab" * 500, "a" * 500, HAN * 3])
def test_shingle_sets_are_sorted_sets_of_hashes(texts: list[str | None]) -> None:
    column = pa.array(texts, type=pa.string())
    backwards = np.arange(len(texts))[::-1]
    sets, reverse = shingle_sets(column), shingle_sets(column, backwards)
    for row, text in enumerate(texts):
        hashes = sets.hashes[sets.offsets[row] : sets.offsets[row + 1]].tolist()
        assert hashes == sorted({shingle_hash(shingle.encode("utf-32-le")) for shingle in shingles(text)})
        place = len(texts) - 1 - row
        assert hashes == reverse.hashes[reverse.offsets[place] : reverse.offsets[place + 1]].tolist()


@pytest.mark.parametrize("row", [-1, 2])
def test_a_row_outside_the_column_is_refused(row: int) -> None:
    with pytest.raises(IndexError, match="column with 2 rows"):
        shingle_sets(pa.array(["a", "b"]), np.array([0, row]))


def jaccard_of(left: str | None, right: str | None) -> float:
    a, b = shingles(left), shingles(right)
    return len(a & b) / len(a | b) if a | b else 0.0


ALIKE = st.none() | st.text("天地人", max_size=12) | st.sampled_from(["春" * 49, "春" * 50, "春夏" * 26, HAN, HAN[1:]])


@given(st.lists(st.tuples(ALIKE, ALIKE), max_size=10))
@example([(HAN[:60], HAN[:60]), (HAN[:60], HAN[100:160]), ("", None), ("天", "")])
def test_jaccard_is_that_of_the_sets_of_shingles(pairs: list[tuple[str | None, str | None]]) -> None:
    sides = zip(*pairs, strict=True) if pairs else ([], [])
    left, right = (shingle_sets(pa.array(list(side), pa.string())) for side in sides)
    rows = np.arange(len(pairs))
    expected = [jaccard_of(*pair) for pair in pairs]
    np.testing.assert_array_equal(jaccard(left, rows, right, rows), expected)
    np.testing.assert_array_equal(jaccard(right, rows[::-1], left, rows[::-1]), expected[::-1])


@pytest.mark.parametrize("threshold", [1e-9, 0.1, 0.25, 1 / 3, 0.5, 0.7, 0.8, 1.0])
def test_jaccard_below_the_threshold_is_nothing(threshold: float) -> None:
    """All pairs of 60 slices of one text have similarities of every size, including the threshold itself."""
    texts = [HAN[start : start + length] for start, length in product(range(0, 20, 2), (50, 53, 56, 60, 66, 79))]
    exact = [[jaccard_of(left, right) for right in texts] for left in texts]
    left, right = np.divmod(np.arange(len(texts) ** 2), len(texts))
    sets = shingle_sets(pa.array(texts))
    found = jaccard(sets, left, sets, right, threshold).reshape(len(texts), -1)
    np.testing.assert_array_equal(found, np.where(np.array(exact) >= threshold, exact, 0))


def murmurhash64a(data: bytes) -> int:
    """Compute MurmurHash64A with seed 0, following its source."""
    mask, factor = 2**64 - 1, 0xC6A4A7935BD1E995
    value = len(data) * factor & mask
    whole = len(data) // 8 * 8
    for at in range(0, whole, 8):
        block = int.from_bytes(data[at : at + 8], "little") * factor & mask
        value = (value ^ (block ^ block >> 47) * factor & mask) * factor & mask
    if data[whole:]:
        value = (value ^ int.from_bytes(data[whole:], "little")) * factor & mask
    value = (value ^ value >> 47) * factor & mask
    return value ^ value >> 47


@given(st.lists(st.none() | TEXT, max_size=6))
@example(["", "a" * 7, "a" * 8, "a" * 9, "a" * 16, "a" * 17, None])
def test_text_hashes_are_murmurhash64a(texts: list[str | None]) -> None:
    expected = [murmurhash64a((text or "").encode()) >> 1 for text in texts]
    column = pa.array(texts, type=pa.string())
    assert text_hashes(column).tolist() == text_hashes(column.cast(pa.large_string())).tolist() == expected
    assert text_hashes(column[1:]).tolist() == expected[1:]


def test_text_hashes_are_those_of_libstdcxx() -> None:
    """The values are those of GCC's `std::_Hash_bytes(text, bytes, 0)`, the same function, without their lowest bit."""
    known = {
        "": 0,
        "a": 255451638493721992,
        "中文": 1145341170629719101,
        "01234567": 4889289705682293709,
        "012345678": 432988201016085221,
        "北京的秋天为什么适合旅行？": 7284545820464966494,
        "x" * 100: 1226409257628526312,
    }
    assert text_hashes(pa.array([*known])).tolist() == [*known.values()]


def test_shingle_hashes_of_han_spread_over_every_bit() -> None:
    hashes = shingle_sets(pa.array(["".join(map(chr, range(0x4E00, 0x9FA6)))])).hashes
    assert len(hashes) == 0x9FA6 - 0x4E00 - 4
    ones = np.unpackbits(hashes.view(np.uint8)).reshape(-1, 32).mean(axis=0)
    assert np.abs(ones - 0.5).max() < 4.5 * 0.5 / np.sqrt(len(hashes))


def test_agreement_of_signatures_estimates_jaccard() -> None:
    rng = np.random.default_rng(0)
    left, right = (["".join(rng.choice(list(HAN), 400)) for _ in range(60)] for _ in range(2))
    texts = [a[: 100 + 5 * i] + b[100 + 5 * i :] for i, (a, b) in enumerate(zip(left, right, strict=True))]
    pairs = [(shingles(a), shingles(b)) for a, b in zip(left, texts, strict=True)]
    exact = [len(a & b) / len(a | b) for a, b in pairs]
    estimate = (signatures(pa.array(left)) == signatures(pa.array(texts))).mean(axis=1)
    error = (estimate - exact) / np.sqrt(np.multiply(exact, np.subtract(1, exact)) / 128)
    assert abs(error.mean()) < 0.4
    assert 0.7 < error.std() < 1.3
