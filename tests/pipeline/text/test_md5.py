"""MD5 by a kernel, compared with OpenSSL's."""

import hashlib

import pyarrow as pa
from conan_embedding.pipeline.text.md5 import md5
from hypothesis import given
from hypothesis import strategies as st


def assert_is_md5(texts: list[str]) -> None:
    expected = [hashlib.md5(text.encode()).hexdigest() for text in texts]
    assert md5(pa.array(texts, pa.large_string())).to_pylist() == expected


def test_every_length_and_number_of_texts() -> None:
    assert_is_md5([])
    assert_is_md5(["文" * (length % 7) + "a" * length for length in range(300)])  # ends anywhere in up to five blocks
    for rows in (1, 63, 64, 65):
        assert_is_md5([str(row) for row in range(rows)])


@given(st.lists(st.text(max_size=200), max_size=70))
def test_texts(texts: list[str]) -> None:
    assert_is_md5(texts)


def test_slices_and_nulls() -> None:
    texts = pa.chunked_array([["甲", "乙"], ["丙", None]])
    assert md5(texts.slice(1)).to_pylist() == [hashlib.md5(text.encode()).hexdigest() for text in ("乙", "丙", "")]
