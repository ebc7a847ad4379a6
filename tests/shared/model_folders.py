"""Model folders as people have them: tiny random encoders of many kinds, in the layouts of sentence-transformers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHARACTERS = sorted(set("天气股市怎样泡绿茶北京上海今很好问答句：: Aabcdefghijklmnopqrstuvwxyz0123456789。，?"))
HIDDEN = 32

SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "hidden_size": HIDDEN}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
ROBERTA_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
EOS_TOKENS = ("<unk>", "<|end|>")

KINDS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "bert": ("Bert", {**SHAPE, **STILL, "max_position_embeddings": 40, "pad_token_id": 0}),
    "roberta": ("Roberta", {**SHAPE, **STILL, "max_position_embeddings": 42, "pad_token_id": 1, "type_vocab_size": 1}),
    "modernbert": ("ModernBert", {**SHAPE, "max_position_embeddings": 40, "pad_token_id": 0, "embedding_dropout": 0.0}),
    "t5": ("T5Encoder", {"d_model": HIDDEN, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "pad_token_id": 0}),
    "qwen3": ("Qwen3", {**SHAPE, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 40}),
}
"""Names of transformers' classes, without Model and Config, and the shapes of their configurations."""


def make_tokenizer(kind: str, side: str = "right", length: int = 40) -> PreTrainedTokenizerFast:
    """Make a tokenizer of one token per character, which keeps case and wraps texts as models of its kind want it."""
    if kind == "roberta":
        special, template = ROBERTA_TOKENS, "<s> $A </s>"
        named = {
            "cls_token": "<s>",
            "pad_token": "<pad>",
            "sep_token": "</s>",
            "unk_token": "<unk>",
        }
    elif kind == "qwen3":  # one token ends and pads texts, as in Qwen3-Embedding
        special, template = EOS_TOKENS, "$A <|end|>"
        named = {"eos_token": "<|end|>", "pad_token": "<|end|>", "unk_token": "<unk>"}
    else:
        special, template = BERT_TOKENS, "$A [SEP]" if kind == "t5" else "[CLS] $A [SEP]"
        named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    vocabulary = {token: number for number, token in enumerate([*special, *CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=named["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    around = [(token, vocabulary[token]) for token in special if token in template]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side=side, model_max_length=length, **named)


def write_plain(folder: Path, kind: str = "bert", **tokenizer: Any) -> Path:
    """Write a Hugging Face folder with wide random weights, so that every difference shows."""
    words = make_tokenizer(kind, **tokenizer)
    name, shape = KINDS[kind]
    config_class = getattr(transformers, f"{name.removesuffix('Encoder')}Config")
    wide = {} if kind == "t5" else {"initializer_range": 0.3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}Model")(config_class(vocab_size=len(words), **wide, **shape))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def add_modules(
    folder: Path,
    pooling: Mapping[str, Any],
    dense: Sequence[tuple[int, str | None, bool]] = (),
    normalize: bool = True,
    transformer: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    names: str = "sentence_transformers.models.{0}",
) -> Path:
    """Make a Hugging Face folder a SentenceTransformer folder; `dense` has width, activation and bias of each layer."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": HIDDEN, **pooling})
    width = HIDDEN
    for place, (out, activation, bias) in enumerate(dense, start=2):
        path = f"{place}_Dense"
        modules.append((path, "Dense"))
        sizes = {"in_features": width, "out_features": out, "bias": bias, "activation_function": activation}
        write_json(folder / path / "config.json", sizes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(place)
            weights = {"linear.weight": torch.randn(out, width)} | ({"linear.bias": torch.randn(out)} if bias else {})
        save_file(weights, folder / path / "model.safetensors")
        width = out
    if normalize:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
    listed = [
        {"idx": place, "name": str(place), "path": path, "type": names.format(kind, kind.lower())}
        for place, (path, kind) in enumerate(modules)
    ]
    write_json(folder / "modules.json", listed)
    write_json(folder / "sentence_bert_config.json", transformer or {"max_seq_length": 40, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json", config or {})
    return folder


def write_json(file: Path, content: object) -> None:
    """Write a JSON file, and its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
