"""Tiny cross-encoders with random weights, as plain folders and as sentence-transformers saves them."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from model_folders import KINDS, make_tokenizer, write_json
from tokenizers import processors


def write_cross_encoder(folder: Path, kind: str = "bert", labels: int = 1, seed: int = 0, **config: Any) -> Path:
    """Write a Hugging Face folder of a sequence classifier; pairs have token types if its kind is bert."""
    words = make_tokenizer(kind)
    pair = "<s> $A </s> </s> $B </s>" if kind == "roberta" else "[CLS] $A [SEP] $B:1 [SEP]:1"
    special = [(token, words.convert_tokens_to_ids(token)) for token in words.all_special_tokens]
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=pair.partition(" $B")[0].removesuffix(" </s>"), pair=pair, special_tokens=special
    )
    name, shape = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = getattr(transformers, f"{name}Config")(
            vocab_size=len(words), initializer_range=0.3, num_labels=labels, **shape
        )
        model = getattr(transformers, f"{name}ForSequenceClassification")(made)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    if kind == "bert":
        inputs = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
        file = folder / "tokenizer_config.json"
        write_json(file, json.loads(file.read_text("utf-8")) | inputs)
    if config:
        write_json(folder / "config.json", model.config.to_dict() | config)
    return folder
