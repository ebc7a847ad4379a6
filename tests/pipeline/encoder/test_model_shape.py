"""The shape of a model, read without its weights, is that of the loaded model; what can't be loaded is refused."""

import shutil
from pathlib import Path

import pytest
from conan_embedding.pipeline.encoder.encoder import dimension, load_encoder
from conan_embedding.pipeline.encoder.model_folder import ModelError, find_local_model
from conan_embedding.pipeline.encoder.model_shape import read_shape
from conan_embedding.schemas.settings import EncoderSettings
from tiny_decoders import save_decoder


def test_the_width_is_that_of_the_loaded_model(bge: Path) -> None:
    settings = EncoderSettings(model=str(bge))
    shape = read_shape(bge, settings)
    assert shape.width == dimension(load_encoder(settings)) == 32
    assert (shape.layout.pooling, shape.config.model_type) == ("cls", "bert")


def test_a_decoder_needs_a_pooling(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "decoder", "llama", "一二三")
    with pytest.raises(ModelError, match="llama is a decoder"):
        read_shape(folder, EncoderSettings(model=str(folder)))
    assert read_shape(folder, EncoderSettings(model=str(folder), pooling="lasttoken")).width == 32


@pytest.mark.parametrize(
    ("lacking", "message"),
    [("tokenizer.json", "has no vocabulary"), ("config.json", "no Hugging Face model"), ("model.s", "no weights")],
)
def test_a_folder_that_lacks_a_file_is_refused(tiny_model: Path, tmp_path: Path, lacking: str, message: str) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    for file in folder.glob(f"{lacking}*"):
        file.unlink()
    with pytest.raises(ModelError, match=message):
        read_shape(folder, EncoderSettings(model=str(folder)))
    with pytest.raises(ModelError):
        load_encoder(EncoderSettings(model=str(folder)))


def test_the_hubs_cache_is_looked_into_and_nothing_is_downloaded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_local_model(str(tiny_model)) == find_local_model(f"{tiny_model}[:1]") == tiny_model
    assert find_local_model("nobody/small") is None
    kept = tmp_path / "models--nobody--small"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0a1b")
    shutil.copytree(tiny_model, kept / "snapshots" / "0a1b")
    assert find_local_model("nobody/small") == find_local_model("nobody/small[:1]") == kept / "snapshots" / "0a1b"
    with pytest.raises(ModelError, match="has 1 layers"):
        find_local_model("nobody/small[:2]")
    (kept / "snapshots" / "0a1b" / "model.safetensors").unlink()  # only the configuration was needed so far
    assert find_local_model("nobody/small") is None
    with pytest.raises(ModelError, match=r"a/b/c is not a folder, nor a name that a model on the hub may have"):
        find_local_model("a/b/c")
