"""The cache of vectors: no text is encoded twice, a killed run loses at most one part, no stray files remain."""

import hashlib
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from conan_embedding.pipeline.encoder import encoder as encoders
from conan_embedding.pipeline.encoder import vector_cache as module
from conan_embedding.pipeline.encoder.vector_cache import FOLDER, concatenate, find, keep_only, space, store, truncated
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.engine.stage import StageError
from conan_embedding.schemas.settings import EncoderSettings

TEXTS = [f"文本{number}" * (1 + number % 3) for number in range(25)] + ["", "x"]


def vector(text: str) -> np.ndarray:
    return np.random.default_rng(list(hashlib.sha256(text.encode()).digest())).standard_normal(6).astype(np.float32)


class Model:
    """A fake encoder: known vectors, and a record of the texts that it was called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.truncated = 0
        self.loaded: set[str] = set()
        self.asked: list[list[str]] = []
        self.dies_at: str | None = None
        monkeypatch.setattr(encoders, "encode", self.encode)
        monkeypatch.setattr(encoders, "loaded", self.load)
        monkeypatch.setattr(module, "space", lambda weights, settings, prompt: weights)
        monkeypatch.setattr(module, "PART", 10)

    def load(self, settings: EncoderSettings, weights: str, device: str | None = None) -> Any:
        self.loaded.add(weights)
        return self

    def encode(self, encoder: Any, texts: pa.Array, prompt: str) -> np.ndarray:
        assert encoder is self
        asked = texts.to_pylist()
        if self.dies_at in asked:
            raise KeyboardInterrupt
        self.asked.append(asked)
        self.truncated += sum(len(text) > 10 for text in asked)
        return np.stack([vector(prompt + text) for text in asked])


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    return Model(monkeypatch)


def each(value: str, texts: Sized) -> pl.Series:
    return pl.Series([value] * len(texts), dtype=pl.String)


def stored(corpus: Path, model: Model, texts: Sequence[str], name: str = "one", prompt: str = "") -> np.ndarray:
    column, seen = pa.array(texts, pa.large_string()), []
    before = sum(map(len, model.asked))
    engine = Engine(progress=lambda *done: seen.append(done))
    result = store(corpus, name, EncoderSettings(), each(prompt, texts), column, engine)
    encoded, parts = sum(map(len, model.asked)) - before, -(-(sum(map(len, model.asked)) - before) // 10)
    assert seen[-1:] == ([("vectors", parts, parts, encoded)] if encoded else [])
    assert len(result) == len(texts)
    found = find(corpus, each(name, texts), column)
    assert found is not None
    backwards = np.arange(len(texts))[::-1]
    np.testing.assert_array_equal(found.take(backwards), result.take(backwards))
    return result.take(np.arange(len(texts)))


def test_a_small_corpus_has_up_to_sixteen_parts(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 32_768)
    monkeypatch.setattr(module, "LEAST", 2)
    texts, seen = [str(number) for number in range(40)], []
    engine = Engine(progress=lambda *done: seen.append(done))
    store(tmp_path, "one", EncoderSettings(), each("", texts), pa.array(texts, pa.large_string()), engine)
    assert [len(asked) for asked in model.asked] == [3] * 13 + [1]
    assert seen[1] == ("vectors", 1, 14, 3) and seen[-1] == ("vectors", 14, 14, 40)


def expected(texts: Sequence[str], prompt: str = "") -> np.ndarray:
    return np.stack([vector(prompt + text) for text in texts])


def files(corpus: Path) -> list[str]:
    return sorted(str(file.relative_to(corpus / FOLDER)) for file in (corpus / FOLDER).rglob("*") if file.is_file())


def test_each_text_is_encoded_once(tmp_path: Path, model: Model) -> None:
    np.testing.assert_array_equal(stored(tmp_path, model, TEXTS[:13]), expected(TEXTS[:13]))
    assert [len(asked) for asked in model.asked] == [10, 3]
    assert (np.load(tmp_path / FOLDER / "one" / "vectors-00001.npy") == expected(TEXTS[10:13])).all()
    mixed = TEXTS[20:] + TEXTS[5:9] + TEXTS[13:20]
    np.testing.assert_array_equal(stored(tmp_path, model, mixed), expected(mixed))
    assert model.asked[2:] == [TEXTS[20:] + TEXTS[13:16], TEXTS[16:20]]
    model.loaded.clear()
    np.testing.assert_array_equal(stored(tmp_path, model, TEXTS[::-1]), expected(TEXTS[::-1]))
    assert not model.loaded
    assert truncated(tmp_path, {"one"}) == sum(len(text) > 10 for text in TEXTS)
    assert files(tmp_path) == [f"one/{kind}-0000{part}.{end}" for kind, end in
                               (("texts", "parquet"), ("vectors", "npy")) for part in range(4)]  # fmt: skip


def test_a_killed_run_keeps_its_parts(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model.dies_at = TEXTS[22]
    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path, model, TEXTS)
    # Killed again, after writing the hashes of a part but before its vectors.
    model.dies_at = None
    monkeypatch.setattr(np, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path, model, TEXTS)
    monkeypatch.undo()
    assert "one/texts-00002.parquet" in files(tmp_path) and "one/vectors-00002.npy" not in files(tmp_path)
    again = Model(monkeypatch)
    np.testing.assert_array_equal(stored(tmp_path, again, TEXTS), expected(TEXTS))
    assert again.asked == [TEXTS[20:]]
    assert truncated(tmp_path, {"one"}) == sum(len(text) > 10 for text in TEXTS)


def test_spaces_keep_apart_and_old_ones_go(tmp_path: Path, model: Model) -> None:
    for name, prompt in (("old", ""), ("queries", "问："), ("passages", "")):
        np.testing.assert_array_equal(stored(tmp_path, model, TEXTS, name, prompt), expected(TEXTS, prompt))
    assert sum(map(len, model.asked)) == 3 * len(TEXTS)
    for leftover in ("texts-00003.parquet", ".vectors-00003.npy.1.tmp"):
        (tmp_path / FOLDER / "queries" / leftover).write_bytes(b"of a run that was killed")
    (tmp_path / FOLDER / ".DS_Store").touch()
    keep_only(tmp_path, {"queries", "passages"})
    (tmp_path / FOLDER / ".DS_Store").unlink()
    assert {file.partition("/")[0] for file in files(tmp_path)} == {"passages", "queries"}
    assert len(files(tmp_path)) == 12 and not any("00003" in file for file in files(tmp_path))
    assert len(stored(tmp_path, model, TEXTS, "queries", "问：")) == len(TEXTS)


def test_what_is_missing_is_not_found(tmp_path: Path, model: Model) -> None:
    column = pa.array(TEXTS, pa.large_string())
    assert find(tmp_path, each("one", column), column) is None
    stored(tmp_path, model, TEXTS[1:])
    assert find(tmp_path, each("one", column), column) is None
    assert find(tmp_path, each("other", column), column) is None
    assert find(tmp_path, each("one", column[1:]), column[1:]) is not None
    assert not (tmp_path / FOLDER / "other").exists()


def test_no_texts(tmp_path: Path, model: Model) -> None:
    result = store(tmp_path, "one", EncoderSettings(), each("", []), pa.array([], pa.large_string()), Engine())
    assert (len(result), model.loaded, truncated(tmp_path, {"one"})) == (0, set(), 0)
    assert result.take(np.zeros(0, np.int64)).size == 0


def test_what_decides_vectors_names_their_space() -> None:
    settings = EncoderSettings(model="m", max_length=32)
    name = space("weights", settings, "")
    same = [{"model": "n"}, {"batch_tokens": 64}, {"compile": True}]
    assert {space("weights", settings.model_copy(update=update), "") for update in same} == {name}
    others = [settings.model_copy(update=update) for update in ({"max_length": 33}, {"pooling": "mean"})]
    different = [space("weights", other, "") for other in others]
    assert len({name, *different, space("other", settings, ""), space("weights", settings, "问：")}) == 5


def test_a_part_that_another_process_did_not_end_is_made_again(tmp_path: Path, model: Model) -> None:
    """Parts are written in parallel, so any of them may be missing after a kill."""
    stored(tmp_path, model, TEXTS)
    (tmp_path / FOLDER / "one" / "vectors-00000.npy").unlink()
    np.testing.assert_array_equal(stored(tmp_path, model, TEXTS), expected(TEXTS))
    assert model.asked[-1] == TEXTS[:10]
    keep_only(tmp_path, {"one"})
    assert [file for file in files(tmp_path) if "texts" in file] == [
        f"one/texts-0000{part}.parquet" for part in (1, 2, 3)
    ]


def test_a_part_that_is_not_here_is_reported(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "write_part", lambda *_: None)
    with pytest.raises(StageError, match=r"vectors-00000\.npy: written on a node that does not share this folder"):
        stored(tmp_path, model, TEXTS)


def test_blocks_are_put_one_after_another(tmp_path: Path, model: Model) -> None:
    blocks = []
    for some in (TEXTS[:7], TEXTS[7:8], TEXTS[8:]):  # each block adds a file
        stored(tmp_path, model, some)
        blocks.append(find(tmp_path, each("one", some), pa.array(some, pa.large_string())))
    together = concatenate([block for block in blocks if block is not None])
    np.testing.assert_array_equal(together.take(np.arange(len(together))), [vector(text) for text in TEXTS])
    assert len(concatenate([])) == 0
