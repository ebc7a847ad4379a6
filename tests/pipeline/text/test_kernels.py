"""Decoding compared with Python's own decoder, columns of every layout, and the caches of compiled kernels."""

import importlib
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from conan_embedding.pipeline.text import kernels
from conan_embedding.pipeline.text.kernels import Texts, code_point, decode, utf8_buffers
from hypothesis import example, given
from hypothesis import strategies as st

EDGES = "\0\x7f\x80\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0001ffff\U00020000\U0010ffff"
"""The first and last characters of each width and of planes."""
PLANES = [
    st.characters(min_codepoint=plane << 16, max_codepoint=plane << 16 | 0xFFFF, exclude_categories=["Cs"])
    for plane in range(17)
]
TEXT = st.text(st.one_of(st.sampled_from(EDGES), *PLANES), max_size=20)


def decoded(texts: Texts) -> list[str]:
    offsets, data = utf8_buffers(texts)
    assert (offsets.dtype, data.dtype, offsets.shape) == (np.int64, np.uint8, (len(texts) + 1,))
    points = np.empty(len(data), np.uint32)
    return [
        "".join(map(chr, points[: decode(data, start, end, points[: end - start])])) for start, end in pairwise(offsets)
    ]


@given(st.lists(st.none() | TEXT, max_size=6), st.integers(0, 6))
@example([], 0)
@example(["", None, EDGES, ""], 2)
def test_decodes_as_python_does(texts: list[str | None], cut: int) -> None:
    expected = [text or "" for text in texts]
    column = pa.array(texts, pa.string())
    assert decoded(column) == expected
    assert decoded(pa.chunked_array([column[:cut], column[:0], column[cut:]])) == expected
    assert decoded(column[cut:]) == expected[cut:]


def test_every_character() -> None:
    text = "".join(chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000)
    assert decoded(pa.array([text])) == [text]
    for character in EDGES:
        assert code_point(np.frombuffer(character.encode(), np.uint8), 0) == (ord(character), len(character.encode()))


@pytest.mark.parametrize("character", EDGES[2:])
def test_a_character_cut_off_is_replaced_and_what_follows_is_not_read(character: str) -> None:
    whole = np.frombuffer(f"é{character}中".encode(), np.uint8)
    for end in range(3, 2 + len(character.encode())):
        points = np.zeros(4, np.uint32)
        assert decode(whole, 0, end, points) == decode(whole[:end].copy(), 0, end, points) == 2
        assert points.tolist() == [*map(ord, bytes(whole[:end]).decode(errors="replace")), 0, 0]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_every_layout_of_a_column(kind: pa.DataType) -> None:
    texts = ["你好，世界", None, "", "é\0\n", "a𠀀" * 30, "tail"]
    expected = [text or "" for text in texts]
    whole = pa.array(texts, pa.string()).cast(kind)
    chunked = pa.chunked_array([whole[:2], whole[2:2], whole[2:]])
    assert decoded(whole) == decoded(chunked) == decoded(pl.Series(texts).to_arrow()) == expected
    assert decoded(whole[1:5]) == decoded(chunked[1:5]) == decoded(chunked.slice(1).slice(0, 4)) == expected[1:5]
    for empty in (pa.array([], kind), pa.chunked_array([], kind), whole[:0], whole[6:], chunked[6:]):
        assert decoded(empty) == []
    assert decoded(pa.nulls(3, kind)) == [""] * 3


def test_one_chunk_is_not_copied() -> None:
    column = pa.array(["甲", "乙"], pa.large_string())
    assert utf8_buffers(pa.chunked_array([column]))[1].ctypes.data == column.buffers()[2].address


def test_a_null_owns_no_bytes_of_its_slot() -> None:
    _, ends, data = pa.array(["secret", "shown"]).buffers()
    hidden = pa.Array.from_buffers(pa.string(), 2, [pa.py_buffer(b"\x02"), ends, data])
    assert decoded(hidden) == ["", "shown"]


@pytest.mark.parametrize("kind", [pa.int64(), pa.binary(), pa.list_(pa.string())])
def test_only_strings_are_text(kind: pa.DataType) -> None:
    with pytest.raises(TypeError, match=f"strings, not {kind}"):
        utf8_buffers(pa.array([], kind))


BETWEEN = """
import numpy as np
from copied_kernels import decode, kernel

@kernel
def size(data):
    return decode(data, 0, len(data), np.empty(len(data), np.uint32))
"""
CALLER = """
from between import size
from copied_kernels import kernel

@kernel
def count(data):
    return size(data)
"""


def test_kernels_are_cached_until_a_file_of_their_code_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each import acts as another process would; `size` and the decoder are compiled into `count`."""
    copied, between, caller = modules = [tmp_path / f"{name}.py" for name in ("copied_kernels", "between", "calling")]
    shutil.copy(str(kernels.__file__), copied)
    between.write_text(BETWEEN, "utf-8")
    caller.write_text(CALLER, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def imported() -> ModuleType:
        for module in modules:
            sys.modules.pop(module.stem, None)
        importlib.invalidate_caches()
        return importlib.import_module(caller.stem)

    def count() -> tuple[int, int]:
        """Return the result for three characters, and the number of cache hits."""
        function = imported().count
        return function(np.frombuffer("aé中".encode(), np.uint8)), sum(function.stats.cache_hits.values())

    try:
        assert [count(), count()] == [(3, 0), (3, 1)]
        source = copied.read_text("utf-8")
        copied.write_text(source.replace("    return count\n", "    return -count\n"), "utf-8")
        assert [count(), count()] == [(-3, 0), (-3, 1)]
        between.write_text(BETWEEN.replace("return decode", "return 2 * decode"), "utf-8")
        assert [count(), count()] == [(-6, 0), (-6, 1)]
        caller.write_text(CALLER.replace("return size", "return 5 * size"), "utf-8")
        assert [count(), count()] == [(-30, 0), (-30, 1)]
    finally:
        for module in modules:
            sys.modules.pop(module.stem, None)
