"""Models cut to their first layers, against models whose list of layers is cut in memory."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conan_embedding.pipeline.encoder import first_layers
from conan_embedding.pipeline.encoder.encoder import encode, load_encoder
from conan_embedding.pipeline.encoder.model_folder import ModelError, find_model, weights_fingerprint
from conan_embedding.schemas.settings import EncoderSettings
from model_folders import add_modules, write_plain
from transformers import AutoModel, AutoModelForTextEncoding

TEXTS = ["今天天气怎样？", "泡绿茶", "abc 123"]
LAYERS = {"bert": "encoder.layer", "roberta": "encoder.layer", "modernbert": "layers", "t5": "encoder.block"}
LAYERS |= {"qwen3": "layers"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of cut models."""
    monkeypatch.setattr(first_layers, "HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "conan"


@pytest.mark.parametrize("kind", LAYERS)
def test_the_vectors_are_those_of_a_model_without_the_other_layers(kind: str, tmp_path: Path) -> None:
    folder = write_plain(tmp_path / kind, kind)
    encoder = load_encoder(EncoderSettings(model=f"{folder}[:1]", pooling="mean"), device="cpu")

    loader = AutoModelForTextEncoding if kind == "t5" else AutoModel
    reference = loader.from_pretrained(folder).eval()
    layers = reference.get_submodule(LAYERS[kind])
    assert len(layers) == 2
    del layers[1:]
    expected = []
    for text in TEXTS:
        tokens = encoder.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        with torch.inference_mode():
            expected.append(reference(**tokens, use_cache=False).last_hidden_state[0].mean(dim=0).numpy())
    normal = np.array(expected) / np.linalg.norm(expected, axis=1, keepdims=True)
    vectors = encode(encoder, TEXTS)
    np.testing.assert_allclose(vectors, normal, atol=1e-6)

    whole = encode(load_encoder(EncoderSettings(model=str(folder), pooling="mean"), device="cpu"), TEXTS)
    assert np.abs(vectors - whole).max() > 0.01


def test_modules_and_prompts_stay(tmp_path: Path) -> None:
    folder = add_modules(
        write_plain(tmp_path / "model"),
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        dense=[(8, None, True)],
        config={"prompts": {"query": "问："}},
    )
    cut = load_encoder(EncoderSettings(model=f"{folder}[:1]"), device="cpu")
    assert (cut.pooling, cut.prompts.query, encode(cut, TEXTS).shape) == ("cls", "问：", (3, 8))


def test_a_model_in_several_files(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "model")
    one = encode(load_encoder(EncoderSettings(model=f"{folder}[:1]"), device="cpu"), TEXTS)
    AutoModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="10KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("*.safetensors"))) > 2
    several = load_encoder(EncoderSettings(model=f"{folder}[:1]"), device="cpu")
    np.testing.assert_array_equal(encode(several, TEXTS), one)


def test_a_cut_model_is_written_once_and_again_when_the_model_changes(tmp_path: Path, cache: Path) -> None:
    folder = write_plain(tmp_path / "model")
    first = find_model(f"{folder}[:1]")
    assert find_model(f"{folder}[:1]") == first
    assert [place.name for place in cache.iterdir()] == [first.name]  # and nothing temporary
    assert weights_fingerprint(first) != weights_fingerprint(folder)
    assert json.loads((first / "config.json").read_text())["num_hidden_layers"] == 1

    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 20}))
    again = find_model(f"{folder}[:1]")
    assert again != first
    assert load_encoder(EncoderSettings(model=f"{folder}[:1]"), device="cpu").max_length == 20


def test_all_layers_are_the_model_itself(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "model")
    assert find_model(f"{folder}[:2]") == folder


@pytest.mark.parametrize("layers", [0, 3])
def test_layers_that_the_model_has_not(layers: int, tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "model")
    with pytest.raises(ModelError, match=r"model has 2 layers; ask for 1 to 2 of them, as in \[:2\]"):
        find_model(f"{folder}[:{layers}]")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"0 files config\.json name a `model_type`; expected one"):
        find_model(f"{tmp_path / 'empty'}[:1]")


def test_a_folder_whose_name_ends_so_is_that_folder(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "model[:1]")
    assert find_model(str(folder)) == folder
