"""Soft masks and chosen attention, against transformers' own causal and bidirectional models."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conan_embedding.pipeline.encoder.encoder import encode, load_encoder
from conan_embedding.pipeline.encoder.model_folder import ModelError
from conan_embedding.schemas.settings import EncoderSettings
from conan_embedding.schemas.training_settings import Attention
from conan_embedding.trainer.model.attention import DECODERS, set_attention, soft_mask, soft_weights
from conan_embedding.trainer.model.embedding_model import EmbeddingModel, load
from conan_embedding.trainer.model.export import export
from tiny_decoders import KINDS, config_of, save_decoder, untrained
from transformers import AttentionInterface, BertConfig, BertModel, Gemma3TextConfig, Gemma3TextModel, PreTrainedModel

LENGTHS = [10, 6, 3]


def batch(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 100, (3, 10), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(10) < torch.tensor(LENGTHS)[:, None]).long()
    return ids, mask if side == "right" else mask.flip(1)


def hidden(encoder: PreTrainedModel, ids: torch.Tensor, seen: Any, mask: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        states: torch.Tensor = encoder(input_ids=ids, attention_mask=seen).last_hidden_state
    return states[mask.bool()]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_soft_mask_begins_as_causal_and_ends_as_bidirectional_attention(
    kind: str, side: str, implementation: str
) -> None:
    ids, mask = batch(side)
    encoder = untrained(kind)
    encoder.set_attn_implementation(implementation)
    set_attention(encoder, "causal")
    causal = hidden(encoder, ids, mask, mask)
    set_attention(encoder, "soft")
    bidirectional = hidden(encoder, ids, mask, mask)
    first, halfway, last = (
        hidden(encoder, ids, soft_mask(encoder, ids, mask, alpha), mask) for alpha in (0.0, 0.1, 1.0)
    )
    assert torch.allclose(first, causal, rtol=0, atol=1e-5)
    assert torch.allclose(last, bidirectional, rtol=0, atol=1e-5)
    assert all((halfway - end).abs().max() > 0.01 for end in (causal, bidirectional))


def test_kinds_are_those_that_tests_cover() -> None:
    assert {config_of(kind, 10).model_type for kind in KINDS} == DECODERS


def test_earlier_columns_are_shown_sooner() -> None:
    weights = soft_weights(torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]]), 0.5)
    expected = torch.tensor([[1, 1, 2 / 3, 0.5], [1, 0.5, 0.5, 0.5], [1, 1, 1, 0.5]])
    assert torch.allclose(weights, expected)
    for alpha in (0.0, 0.25, 1.0):
        whole = soft_weights(torch.ones(1, 8), alpha)[0].tolist()
        assert whole == pytest.approx([min(alpha * 8 / column, 1) for column in range(1, 9)])


@pytest.fixture
def literal_attention() -> Iterator[str]:
    """Attention written out in float64 as eq. 3 and 4 are read here: exp(score) times M, then normalised."""

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any) -> Any:
        heads, length = query.shape[1], query.shape[2]
        key, value = (each.repeat_interleave(heads // each.shape[1], dim=1).double() for each in (key, value))
        output = torch.zeros_like(query, dtype=torch.float64)
        for row in range(length):
            scores = (query[0, :, row, None].double() * key[0]).sum(dim=-1) * scaling
            factors = torch.tensor(
                [1.0 if j <= row + 1 else min(0.3 * length / j, 1) for j in range(1, length + 1)], dtype=torch.float64
            )
            weights = scores.exp() * factors
            output[0, :, row] = ((weights / weights.sum(dim=-1, keepdim=True))[:, :, None] * value[0]).sum(dim=1)
        return output.transpose(1, 2).to(query.dtype), None

    AttentionInterface.register("literal", attend)
    yield "literal"
    AttentionInterface._global_mapping.pop("literal")


def test_between_the_ends_weights_are_multiplied_by_m(literal_attention: str) -> None:
    encoder = untrained("llama")
    set_attention(encoder, "soft")
    ids = batch("right")[0][:1]
    whole = torch.ones_like(ids)
    found = hidden(encoder, ids, soft_mask(encoder, ids, None, 0.3), whole)
    encoder.set_attn_implementation(literal_attention)
    assert torch.allclose(found, hidden(encoder, ids, None, whole), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masks_in_half_precision_have_no_nan(dtype: torch.dtype) -> None:
    ids, mask = batch("left")
    encoder = untrained("mistral").to(dtype)
    set_attention(encoder, "soft")
    seen = soft_mask(encoder, ids, mask, 0.0)
    assert encoder(input_ids=ids, attention_mask=seen).last_hidden_state.isfinite().all()
    assert (seen - 1000).isfinite().all()  # what a score of -1000 makes of it


def test_only_training_has_a_soft_mask() -> None:
    ids, mask = batch("right")
    encoder = untrained("qwen3 with windows")
    set_attention(encoder, "soft")
    model = EmbeddingModel(encoder, None, "mean")
    model.soft_alpha = 0.0
    with torch.no_grad():
        soft, bidirectional = model.train()(ids, mask), model.eval()(ids, mask)
        set_attention(encoder, "causal")
        causal = model(ids, mask)
    assert torch.allclose(soft, causal, atol=1e-5)
    assert not torch.allclose(soft, bidirectional, atol=1e-2)


def test_other_models_are_refused() -> None:
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    set_attention(bert, None)
    with pytest.raises(ModelError, match="of type bert; leave `attention` out"):
        set_attention(bert, "bidirectional")
    config = config_of("gemma3_text", 10)
    config.use_bidirectional_attention = True
    assert isinstance(config, Gemma3TextConfig)
    with pytest.raises(ModelError, match="use_bidirectional_attention"):
        set_attention(Gemma3TextModel(config), "soft")


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_says_which_attention_it_has(kind: str, attention: Attention, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    texts = ["今天天气好", "天", "好天气，今天天气好好"]
    model, tokenizer = load(save_decoder(tmp_path / "decoder", kind, "".join(texts)), 12, "lasttoken")
    set_attention(model.encoder, attention)
    folder = str(export(model, tokenizer, tmp_path / "model"))
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert all(ids[mask.sum() - 1] == tokenizer.eos_token_id for ids, mask in zip(*batch.values(), strict=True))
    with torch.no_grad():
        trained = model.eval()(batch["input_ids"], batch["attention_mask"])
    loaded = sentence_transformers.SentenceTransformer(folder, device="cpu", local_files_only=True)
    assert np.allclose(loaded.encode(texts), trained, rtol=0, atol=1e-5)
    inference = load_encoder(EncoderSettings(model=folder), device="cpu")
    assert np.allclose(encode(inference, texts), torch.nn.functional.normalize(trained), rtol=0, atol=1e-5)
