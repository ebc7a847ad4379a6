import copy
import json
from pathlib import Path

import pytest
import torch
from conan_embedding.trainer.model import packing
from conan_embedding.trainer.model.packing import hidden_states, make_packable
from torch import Tensor
from transformers import AutoModel, BertConfig, DistilBertConfig, PreTrainedModel, XLMRobertaConfig

SHAPE = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CONFIGS = {"bert": BertConfig(**SHAPE), "xlm-roberta": XLMRobertaConfig(**SHAPE, pad_token_id=1)}
LENGTHS = {
    "one": [5],
    "longest first": [9, 9, 4, 1],
    "in no order": [3, 9, 1, 9, 3, 200, 3],
    "a full row": [packing.ROW_STEP],
    "with an empty text": [3, 0, 2],
    "nothing but an empty text": [0],
}


def encoder_of(kind: str) -> PreTrainedModel:
    """Build an encoder in float64 without dropout, with weights that make attention sharp."""
    torch.manual_seed(0)
    encoder = AutoModel.from_config(CONFIGS[kind], attn_implementation="eager").double().eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def texts_of(lengths: list[int], padding: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return torch.where(mask > 0, torch.randint(2, 50, mask.shape), padding), mask


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_states_and_gradients_are_those_of_each_text_alone(kind: str, lengths: list[int]) -> None:
    alone, packed = encoder_of(kind), encoder_of(kind)
    assert make_packable(packed)
    ids, mask = texts_of(lengths, padding=1)
    found = hidden_states(packed, ids, mask)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    assert (found[mask == 0] == 0).all()
    for row, length in enumerate(lengths):
        if length:
            expected = alone(input_ids=ids[row : row + 1, :length]).last_hidden_state[0]
            assert torch.allclose(found[row, :length], expected, rtol=0, atol=1e-12)
            (expected * weights[row, :length]).sum().backward()
    for own, exact in zip(packed.parameters(), alone.parameters(), strict=True):
        theirs = torch.zeros_like(own) if exact.grad is None else exact.grad
        assert torch.allclose(torch.zeros_like(own) if own.grad is None else own.grad, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_encoder_runs_padded_texts_as_before(kind: str) -> None:
    before, packable = encoder_of(kind), encoder_of(kind)
    make_packable(packable)
    ids, mask = texts_of([3, 7, 1], padding=1)
    with torch.no_grad():
        expected = before(input_ids=ids, attention_mask=mask).last_hidden_state
        found = packable(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.allclose(found[mask > 0], expected[mask > 0], rtol=0, atol=1e-12)


def test_all_texts_run_in_one_row_of_few_widths() -> None:
    encoder, widths = encoder_of("bert"), []
    make_packable(encoder)
    encoder.embeddings.register_forward_hook(lambda _, given, made: widths.append(tuple(made.shape[:2])))
    for lengths in ([30, 20], [100, 7], [100, 100], [126, 1]):
        hidden_states(encoder, *texts_of(lengths, padding=0))
    assert widths == [(1, 128), (1, 128), (1, 256), (1, 128)]


def test_dropout_is_of_the_seed() -> None:
    encoder = encoder_of("bert").train()
    make_packable(encoder)
    texts = texts_of([9, 4, 4], padding=0)

    def under(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return hidden_states(encoder, *texts)

    assert torch.equal(under(3), under(3))
    assert not torch.equal(under(3), under(4))


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    plain = encoder_of("bert")
    make_packable(plain)
    saving = copy.deepcopy(plain).train()
    for module in saving.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    saving.activation_checkpointing_enable()
    texts = texts_of([9, 4, 4], padding=0)
    for encoder in (plain, saving):
        hidden_states(encoder, *texts).pow(2).sum().backward()
    for own, exact in zip(saving.parameters(), plain.parameters(), strict=True):
        assert (own.grad is None) == (exact.grad is None)
        assert own.grad is None or torch.allclose(own.grad, exact.grad)


def test_other_encoders_stay_as_they_are() -> None:
    other = AutoModel.from_config(DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=32))
    decoder = AutoModel.from_config(BertConfig(**SHAPE, is_decoder=True))
    for encoder in (other, decoder):
        before = encoder.config._attn_implementation
        assert not make_packable(encoder)
        assert encoder.config._attn_implementation == before


def test_a_saved_encoder_says_nothing_of_it(tmp_path: Path) -> None:
    encoder = encoder_of("bert")
    make_packable(encoder)
    encoder.save_pretrained(tmp_path)
    assert packing.ATTENTION not in json.dumps(json.loads((tmp_path / "config.json").read_text("utf-8")))
