"""ONNX files of exported folders, run by ONNX Runtime and, where Node has it, by transformers.js."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pyarrow as pa
import pytest
import torch
from conan_embedding.schemas.errors import MissingExtraError
from conan_embedding.trainer.model import onnx_model as module
from conan_embedding.trainer.model.bootstrap import tiny_bert
from conan_embedding.trainer.model.embedding_model import EmbeddingModel, load
from conan_embedding.trainer.model.export import export
from transformers import PreTrainedTokenizerBase

onnxruntime = pytest.importorskip("onnxruntime")

FITTING = ["今天天气好", "python 编程", "在", "很长的一段文字，" * 3]
TEXTS = [*FITTING[:3], "很长的一段文字，" * 20]
Exported = tuple[Path, EmbeddingModel, PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = pa.chunked_array([TEXTS], pa.string())
    shape = {"layers": 1, "hidden": 16, "heads": 2, "intermediate": 32, "max_length": 32}
    return tiny_bert(tmp_path_factory.mktemp("plain"), texts=texts, **shape)


@pytest.fixture(scope="module", params=[(24, "mean"), (None, "cls")], ids=["24-mean", "None-cls"])
def exported(request: pytest.FixtureRequest, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A folder exported in training mode, with dropout and in half precision; and its model in inference mode."""
    model, tokenizer = load(plain, *request.param)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5
    folder = export(model, tokenizer, tmp_path_factory.mktemp("exported") / "model", precision="bf16", onnx=True)
    assert model.training
    return folder, model.eval(), tokenizer


def run(file: Path, texts: list[str], tokenizer: PreTrainedTokenizerBase) -> npt.NDArray[np.float32]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["input_ids", "attention_mask"]
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
    found: npt.NDArray[np.float32]
    (found,) = session.run(["sentence_embedding"], {name: batch[name] for name in ("input_ids", "attention_mask")})
    return found


@torch.no_grad()
def encode(model: EmbeddingModel, texts: list[str], tokenizer: PreTrainedTokenizerBase) -> npt.NDArray[np.float32]:
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    vectors: npt.NDArray[np.float32] = model(batch["input_ids"], batch["attention_mask"]).numpy()
    return vectors


def cosines(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32]
    found = (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    return found


def test_onnx_runtime_gives_the_same_vectors(exported: Exported) -> None:
    """With other batch sizes and lengths than in tracing."""
    folder, model, tokenizer = exported
    assert sorted(file.name for file in (folder / "onnx").iterdir()) == ["model.onnx", "model_quantized.onnx"]
    assert "transformers.js_config" not in json.loads((folder / "config.json").read_text())
    for texts in (TEXTS, ["在"], TEXTS * 5, TEXTS[2:]):
        found, expected = run(folder / "onnx" / "model.onnx", texts, tokenizer), encode(model, texts, tokenizer)
        assert found.shape == expected.shape and np.abs(found - expected).max() < 1e-4


def test_quantised_weights_give_nearly_the_same_vectors(exported: Exported) -> None:
    folder, model, tokenizer = exported
    file = folder / "onnx" / "model_quantized.onnx"
    found, expected = run(file, TEXTS, tokenizer), encode(model, TEXTS, tokenizer)
    assert cosines(found, expected).min() > 0.999
    assert np.abs(found - expected).max() > 1e-4
    matrices = [each for each in onnx.load(file).graph.initializer if len(each.dims) == 2]
    assert onnx.TensorProto.FLOAT not in {each.data_type for each in matrices}


PROGRAM = """
import { AutoModel, AutoTokenizer, env } from "@huggingface/transformers";

env.allowRemoteModels = false;
const [folder, dtype, texts] = process.argv.slice(2);
const tokenizer = await AutoTokenizer.from_pretrained(folder);
const model = await AutoModel.from_pretrained(folder, { dtype });
const { sentence_embedding } = await model(tokenizer(JSON.parse(texts), { padding: true, truncation: true }));
console.log(JSON.stringify(sentence_embedding.tolist()));
"""


def test_transformers_js_gives_the_same_vectors(exported: Exported) -> None:
    """Texts that fit, as it cuts longer ones without keeping their [SEP]."""
    place = os.environ.get("TRANSFORMERS_JS", "")
    if not (
        shutil.which("node") and place and (Path(place) / "node_modules" / "@huggingface" / "transformers").is_dir()
    ):
        pytest.skip("needs node, and TRANSFORMERS_JS as the folder of its package @huggingface/transformers")
    folder, model, tokenizer = exported
    expected = encode(model, FITTING, tokenizer)
    for dtype in ("fp32", "q8"):
        command = ["node", "--input-type=module", "-", str(folder), dtype, json.dumps(FITTING)]
        done = subprocess.run(command, input=PROGRAM, cwd=place, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = np.array(json.loads(done.stdout), np.float32)
        assert cosines(found, expected).min() > 0.999
        assert (np.abs(found - expected).max() < 1e-3) == (dtype == "fp32")  # not those of the other file


def test_weights_that_are_too_large_for_an_onnx_file_stand_beside_it(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ONNX_LIMIT", 1000)
    folder = export(*load(plain, 24), tmp_path / "model", onnx=True)
    assert sorted(file.name for file in (folder / "onnx").iterdir()) == ["model.onnx", "model.onnx_data"]
    config = json.loads((folder / "config.json").read_text())
    assert config["transformers.js_config"] == {"use_external_data_format": True}
    moved = (folder / "onnx").rename(tmp_path / "moved")
    ones = np.ones((1, 3), np.int64)
    session = onnxruntime.InferenceSession(moved / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"input_ids": ones, "attention_mask": ones})[0].shape == (1, 24)
    assert load(folder)[0].dimension == 24


@pytest.mark.parametrize("missing", ["onnxscript", "onnxruntime"])
def test_onnx_without_its_extra_is_said(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: name != missing or None)
    with pytest.raises(MissingExtraError, match=r"conan-embedding\[onnx\]"):
        export(*load(plain), tmp_path / "model", onnx=True)
    assert list(tmp_path.iterdir()) == []
