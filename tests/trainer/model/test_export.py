"""Exported folders, read by sentence-transformers itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conan_embedding import workflow
from conan_embedding.pipeline.encoder.prompts import read_prompts
from conan_embedding.schemas.prompts import Prompts
from conan_embedding.schemas.recipe import Recipe
from conan_embedding.schemas.settings import EncoderSettings, PromptSettings
from conan_embedding.schemas.training_settings import MATRYOSHKA_DIMS, FinetuneSettings
from conan_embedding.trainer.model import export as module
from conan_embedding.trainer.model.bootstrap import tiny_bert
from conan_embedding.trainer.model.embedding_model import load
from conan_embedding.trainer.model.export import export
from safetensors.torch import load_file

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
    model, tokenizer = load(plain, dimension, pooling)
    folder = export(model, tokenizer, tmp_path / "model")
    batch = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = model.eval()(batch["input_ids"], batch["attention_mask"]).numpy()

    loaded = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    assert np.allclose(loaded.encode(TEXTS), expected, rtol=0, atol=1e-5)
    assert np.allclose(loaded.encode(TEXTS, truncate_dim=8), expected[:, :8], rtol=0, atol=1e-5)
    shorter = export(*load(plain, max_length=20), tmp_path / "shorter")  # of the same model, for shorter texts
    for each in (folder, shorter):
        assert sentence_transformers.SentenceTransformer(str(each), device="cpu").max_seq_length == 32
    assert loaded.similarity_fn_name == "cosine"
    assert [type(each).__name__ for each in loaded] == ["Transformer", "Pooling", "Dense"][: len(loaded)]
    assert len(loaded) == (2 if dimension is None else 3)


def test_vectors_can_be_cut_at_all_seven_widths(plain: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = str(export(*load(plain, 1792), tmp_path / "model"))
    whole = sentence_transformers.SentenceTransformer(folder, device="cpu").encode(TEXTS)
    assert whole.shape == (4, 1792)
    for width in MATRYOSHKA_DIMS:
        cut = sentence_transformers.SentenceTransformer(folder, device="cpu", truncate_dim=width).encode(TEXTS)
        assert np.array_equal(cut, whole[:, :width])


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_weights_of_half_the_size(plain: Path, tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model, tokenizer = load(plain, 24)
    whole = export(model, tokenizer, tmp_path / "whole")
    half = export(model, tokenizer, tmp_path / "half", precision=precision)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())  # training can continue
    for file in ("model.safetensors", "2_Dense/model.safetensors"):
        assert {value.dtype for value in load_file(half / file).values()} == {dtype}
        assert (half / file).stat().st_size < 0.7 * (whole / file).stat().st_size  # tensor names take some of it
    loaded = sentence_transformers.SentenceTransformer(str(half), device="cpu")
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    expected = sentence_transformers.SentenceTransformer(str(whole), device="cpu").encode(TEXTS)
    found = loaded.encode(TEXTS)
    assert 0 < np.abs(found - expected).max() < 1e-2
    assert load(half)[0].encoder.dtype == torch.float32  # loaded as float32, for training


def test_prompts_of_both_sides_are_written(plain: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    settings = PromptSettings(query="今天", passage="天气", sentence="好")
    model, tokenizer = load(plain, 24, prompts=settings)
    folder = export(model, tokenizer, tmp_path / "model")
    loaded = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    bare = {"prompt": ""}
    assert np.array_equal(loaded.encode_query(["编程"]), loaded.encode(["今天编程"], **bare))
    assert np.array_equal(loaded.encode_document(["编程"]), loaded.encode(["天气编程"], **bare))
    assert np.array_equal(loaded.encode(["编程"]), loaded.encode(["好编程"], **bare))
    assert read_prompts(folder, EncoderSettings(model=str(folder))) == Prompts("今天", "天气", "好")
    model, tokenizer = load(plain, 24)
    without = sentence_transformers.SentenceTransformer(str(export(model, tokenizer, tmp_path / "none")), device="cpu")
    assert np.array_equal(without.encode_query(["编程"]), without.encode(["编程"]))


def test_the_recipe_decides_what_is_exported(plain: Path, tmp_path: Path) -> None:
    """A model keeps the prompts of its folder; the card of a stage's model names its training data."""
    base = export(*load(plain, 24, prompts=PromptSettings(query="查：")), tmp_path / "base")
    corpus = tmp_path / "corpus"
    trained = corpus / "train" / "finetune"
    export(*load(base, prompts=PromptSettings(query="")), trained / "model")
    job = {"corpus": str(corpus), "model": str(base), "settings": FinetuneSettings().model_dump(), "shards": {}}
    (trained / "job.json").write_text(json.dumps(job))
    (trained / "log.jsonl").write_text('{"event": "start", "steps": 12, "world_size": 2}\n')
    (trained / "done").touch()
    (corpus / "evaluation").mkdir()
    rows = [{"model": name, "set": "one", "metric": "ndcg@10", "value": 0.25} for name in ("finetune", "pretrain")]
    rows.append({"model": "finetune@8", "set": "one", "metric": "ndcg@10", "value": 0.125, "dimension": 8})
    metrics = corpus / "evaluation" / "metrics.json"
    metrics.write_text(json.dumps(rows))

    folder = Path(workflow.export(corpus, Recipe.model_validate({"export": {"precision": "bf16"}})).folder)
    assert folder == corpus / "model"
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((folder / "config_sentence_transformers.json").read_text())["prompts"]["query"] == ""
    card = (folder / "README.md").read_text("utf-8")
    assert "started from `base`." in card and "12 steps on 2 processes" in card and "needs no prompts" in card
    assert card.count("| one | ndcg@10 | 0.1250 | 0.2500 |") == 1

    os.utime(metrics, (0, 0))  # as if left by an earlier model
    assert "ndcg@10" not in (Path(workflow.export(corpus, Recipe()).folder) / "README.md").read_text("utf-8")

    kept = Path(
        workflow.export(
            corpus, Recipe.model_validate({"export": {"model": str(base), "folder": str(tmp_path / "kept")}})
        ).folder
    )
    assert json.loads((kept / "config_sentence_transformers.json").read_text())["prompts"]["query"] == "查："
    assert "needs the prompts `查：` before queries" in (kept / "README.md").read_text("utf-8")


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


def test_the_command_prints_its_json_alone(plain: Path, tmp_path: Path) -> None:
    """Saving a model imports DeepSpeed, which has words for standard output where there is no GPU."""
    (tmp_path / "recipe.yaml").write_text(f"export: {{model: {plain}}}", "utf-8")
    program = [sys.executable, "-c", "from conan_embedding.cli import main; main()", "export", str(tmp_path), "--json"]
    printed = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert json.loads(printed)["stage"] == "export"
