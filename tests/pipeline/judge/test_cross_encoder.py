"""Cross-encoders against sentence-transformers' CrossEncoder.predict."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conan_embedding.pipeline.encoder.model_folder import ModelError
from conan_embedding.pipeline.judge.cross_encoder import (
    is_cross_encoder,
    load_cross_encoder,
    read_cross_encoder,
    score_pairs,
)
from conan_embedding.schemas.judge_settings import JudgeSettings
from cross_encoders import write_cross_encoder
from model_folders import write_json, write_plain
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder

PAIRS = [
    ("天气怎样", "今天天气很好"),
    ("茶", "怎样泡绿茶" * 9),
    ("股市" * 12, "上海" * 30),
    ("a", ""),
    ("", "北京 abc"),
]
IDENTITY = "torch.nn.modules.linear.Identity"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cross_encoder(tmp_path_factory.mktemp("cross") / "bert")


def scores(folder: Path, **settings: object) -> np.ndarray:
    encoder = load_cross_encoder(JudgeSettings.model_validate({"model": str(folder), **settings}), folder)
    queries, passages = (pl.Series(side, dtype=pl.String) for side in zip(*PAIRS, strict=True))
    return score_pairs(encoder, queries, passages)


def reference(folder: Path, **options: object) -> np.ndarray:
    return CrossEncoder(str(folder), device="cpu", **options).predict(PAIRS)


@pytest.mark.parametrize(
    "kind, config",
    [
        ("bert", {}),
        ("roberta", {}),
        ("bert", {"sentence_transformers": {"activation_fn": IDENTITY, "version": "5.0.0"}}),
        ("bert", {"sbert_ce_default_activation_function": IDENTITY}),
    ],
)
def test_scores_are_those_of_predict(kind: str, config: dict, tmp_path: Path) -> None:
    folder = write_cross_encoder(tmp_path / "plain", kind, **config)
    expected = reference(folder)
    assert np.ptp(expected) > 0.05
    assert is_cross_encoder(folder)
    for batch_tokens in (None, 64):
        np.testing.assert_allclose(scores(folder, batch_tokens=batch_tokens), expected, atol=1e-5)


def test_a_folder_that_sentence_transformers_saved(bert: Path, tmp_path: Path) -> None:
    model = CrossEncoder(str(bert), device="cpu", max_length=20)
    model.save_pretrained(str(tmp_path / "saved"))
    saved = json.loads((tmp_path / "saved" / "config_sentence_transformers.json").read_text("utf-8"))
    assert is_cross_encoder(tmp_path / "saved") and saved["model_type"] == "CrossEncoder"
    np.testing.assert_allclose(scores(tmp_path / "saved"), model.predict(PAIRS), atol=1e-5)


def test_long_pairs_are_truncated_as_predict_does(bert: Path) -> None:
    np.testing.assert_allclose(scores(bert, max_length=12), reference(bert, max_length=12), atol=1e-5)
    assert not np.allclose(scores(bert, max_length=12), scores(bert), atol=1e-3)


def test_token_types_count(bert: Path) -> None:
    """Without them the scores would be others, so the comparisons above see them."""
    folder = shutil.copytree(bert, bert.parent / "without")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    write_json(folder / "tokenizer_config.json", tokenizer | {"model_input_names": ["input_ids", "attention_mask"]})
    assert not np.allclose(scores(folder), scores(bert), atol=1e-3)


def test_batches_hold_to_their_tokens(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_cross_encoder(JudgeSettings(model=str(bert), batch_tokens=64), bert)
    shapes = []
    forward = encoder.model.forward
    monkeypatch.setattr(
        encoder.model, "forward", lambda **given: shapes.append(given["input_ids"].shape) or forward(**given)
    )
    texts = pl.Series(["天" * (number % 20) for number in range(50)])
    score_pairs(encoder, texts, texts)
    assert sum(rows for rows, _ in shapes) == 50
    assert all(rows * width <= 64 for rows, width in shapes)
    assert [width for _, width in shapes] == sorted((width for _, width in shapes), reverse=True)


def test_no_pairs(bert: Path) -> None:
    encoder = load_cross_encoder(JudgeSettings(model=str(bert)), bert)
    none = pl.Series([], dtype=pl.String)
    assert score_pairs(encoder, none, none).shape == (0,)


def _set(file: str, **values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        known = json.loads((folder / file).read_text("utf-8")) if (folder / file).exists() else {}
        write_json(folder / file, known | values)

    return change


def _drop_head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _pooled(folder: Path) -> None:
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}]
    write_json(folder / "modules.json", [*modules, {"type": "my.Head", "path": "1_Head"}])


@pytest.mark.parametrize(
    "change, message",
    [
        (_set("config.json", id2label={"0": "no", "1": "yes"}), "2 labels; expected a cross-encoder"),
        (_set("config.json", sentence_transformers={"activation_fn": "my.Fn"}), "the activation must be one of"),
        (_set("config.json", model_type="qwen2"), "qwen2 is a decoder"),
        (_set("config_sentence_transformers.json", scale=2.0), "`scale: 2.0` is not understood"),
        (_set("config_sentence_transformers.json", default_prompt_name="q"), '`default_prompt_name: "q"`'),
        (_set("sentence_bert_config.json", transformer_task="text-generation"), "is not understood"),
        (_pooled, "expected a cross-encoder of one Transformer module"),
        (_drop_head, "the weights lack classifier.weight"),
    ],
)
def test_what_is_not_understood_is_refused(
    change: Callable[[Path], None], message: str, bert: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "model"))
    change(folder)
    with pytest.raises(ModelError, match=message):
        load_cross_encoder(JudgeSettings(model=str(folder)), folder, "cpu")


def test_damaged_weights_are_told_by_their_scores(bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"][0, 3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="gives 5 pairs a score that is NaN or infinite, such as '天气怎样'"):
        scores(folder)


def test_other_models_are_not_cross_encoders(tmp_path: Path) -> None:
    assert not is_cross_encoder(write_plain(tmp_path / "encoder"))
    with pytest.raises(ModelError, match="2 labels"):
        read_cross_encoder(tmp_path / "encoder")
