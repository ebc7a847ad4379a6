"""Exported folders, read by sentence-transformers itself."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conan_embedding.trainer import export as module
from conan_embedding.trainer.bootstrap import tiny_bert
from conan_embedding.trainer.export import export
from conan_embedding.trainer.model import load

TEXTS = ["今天天气好", "python 编程", "在", "很长的一段文字，" * 20]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = pa.chunked_array([TEXTS], pa.string())
    shape = {"layers": 1, "hidden": 16, "heads": 2, "intermediate": 32, "max_length": 32}
    return tiny_bert(tmp_path_factory.mktemp("plain"), texts=texts, **shape)


@pytest.mark.parametrize(("dimension", "pooling"), [(24, "mean"), (24, "cls"), (None, "mean")])
def test_sentence_transformers_gives_the_same_vectors(
    plain: Path, tmp_path: Path, dimension: int | None, pooling: str
) -> None:
    reason = "sentence-transformers is not installed"
    sentence_transformers = pytest.importorskip("sentence_transformers", reason=reason)
    model, tokenizer = load(plain, dimension, pooling, max_length=20)
    folder = export(model, tokenizer, tmp_path / "model")
    batch = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = model.eval()(batch["input_ids"], batch["attention_mask"]).numpy()

    loaded = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    assert np.allclose(loaded.encode(TEXTS), expected, rtol=0, atol=1e-5)
    assert np.allclose(loaded.encode(TEXTS, truncate_dim=8), expected[:, :8], rtol=0, atol=1e-5)
    assert loaded.max_seq_length == 20
    assert loaded.similarity_fn_name == "cosine"
    assert [type(each).__name__ for each in loaded] == ["Transformer", "Pooling", "Dense"][: len(loaded)]
    assert len(loaded) == (2 if dimension is None else 3)


def test_an_earlier_export_is_replaced(plain: Path, tmp_path: Path) -> None:
    model, tokenizer = load(plain, dimension=24)
    folder = export(model, tokenizer, tmp_path / "deep" / "model")
    without_layer, _ = load(plain)
    export(without_layer, tokenizer, folder)
    assert not (folder / "2_Dense").exists()
    assert [each.name for each in folder.parent.iterdir()] == ["model"]


def test_anything_else_in_its_place_is_left_alone(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="not an exported model"):
        export(*load(plain), tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_failed_export_leaves_the_earlier_one(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export(*load(plain, dimension=24), tmp_path / "model")
    before = (folder / "modules.json").read_text()

    def disk_full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "_json", disk_full)
    with pytest.raises(OSError, match="no space"):
        export(*load(plain), folder)
    assert (folder / "modules.json").read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["model"]
