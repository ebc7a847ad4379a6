"""Untrained decoders of a few layers, one of each kind whose attention can be chosen."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

WINDOW = 4
"""Tokens that a layer with a sliding window sees; the texts of tests are longer."""

_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 64}
_SHAPE = {**_SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1}
_WINDOWS = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}

KINDS = {
    "gemma3_text": (
        Gemma3TextConfig,
        {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW, "sliding_window_pattern": 2},
    ),
    "llama": (LlamaConfig, {}),
    "mistral": (MistralConfig, {"sliding_window": WINDOW}),
    "mistral without windows": (MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2Config, {}),
    "qwen2 with windows": (Qwen2Config, _WINDOWS),
    "qwen3": (Qwen3Config, {"head_dim": 8}),
    "qwen3 with windows": (Qwen3Config, {"head_dim": 8, **_WINDOWS}),
}


def config_of(kind: str, vocab_size: int) -> PreTrainedConfig:
    """Return the configuration of a tiny decoder."""
    configuration, own = KINDS[kind]
    return configuration(**_SHAPE, **own, vocab_size=vocab_size)


def untrained(kind: str, vocab_size: int = 100) -> PreTrainedModel:
    """Return a tiny decoder with random weights, in inference mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModel.from_config(config_of(kind, vocab_size))
    return model.eval()


def save_decoder(folder: Path, kind: str, characters: str) -> Path:
    """Save a tiny decoder and a tokenizer of single characters, which ends each text in an EOS token."""
    tokens = ["<pad>", "<eos>", "<unk>", *dict.fromkeys(characters)]
    backend = Tokenizer(models.WordLevel({token: place for place, token in enumerate(tokens)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>", "model_max_length": 64}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    untrained(kind, len(tokens)).save_pretrained(folder)
    return folder
