"""Check an exported folder as text-embeddings-inference (TEI), a server for embedding models, reads it.

From the source of its release 1.9.3 (https://github.com/huggingface/text-embeddings-inference): router/src/lib.rs,
backends/ort/src/lib.rs and backends/candle/src.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ENCODER = {
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "max_position_embeddings", "initializer_range", "layer_norm_eps"),
}
_BERT = _ENCODER | {"type_vocab_size", "pad_token_id"}
_DECODER = {
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps"),
}
REQUIRED: dict[str, set[str]] = {
    **dict.fromkeys(("bert", "camembert", "roberta", "xlm-roberta"), _BERT),
    "mpnet": _ENCODER | {"attention_probs_dropout_prob", "relative_attention_num_buckets"},
    "distilbert": {
        *("vocab_size", "dim", "n_layers", "n_heads", "hidden_dim", "activation", "max_position_embeddings"),
        "pad_token_id",
    },
    "modernbert": {
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("hidden_activation", "max_position_embeddings", "initializer_range", "initializer_cutoff_factor", "norm_eps"),
        *("norm_bias", "pad_token_id", "eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"),
        *("global_rope_theta", "attention_bias", "attention_dropout", "global_attn_every_n_layers", "local_attention"),
        *("local_rope_theta", "classifier_activation"),
    },
    "qwen2": _DECODER | {"hidden_act", "use_sliding_window"},
    "qwen3": _DECODER | {"hidden_act", "use_sliding_window", "attention_bias", "eos_token_id"},
    "llama": _DECODER | {"hidden_act", "initializer_range"},
    "mistral": _DECODER | {"hidden_act", "initializer_range"},
    "gemma3_text": _DECODER
    | {
        *("hidden_activation", "attention_bias", "pad_token_id", "query_pre_attn_scalar", "rope_local_base_freq"),
        *("_sliding_window_pattern", "use_bidirectional_attention"),
    },
}
"""The keys without which TEI's own model of a kind does not read config.json."""
UNCHECKED = {"deberta-v2", "gte", "new", "nomic_bert"}
"""Further kinds of models that TEI has, whose config.json is not checked here."""
GPU_ONLY = {"llama", "mistral", "qwen2"}
POOLINGS = ("pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_lasttoken")
MAX_BATCH_TOKENS = 16_384
"""The default of --max-batch-tokens, which longer texts are cut to."""


def tei_warnings(folder: Path) -> list[str]:
    """Say what TEI refuses, ignores or misreads of an exported folder."""
    config = _read(folder / "config.json")
    warnings = [*_of_texts(folder, config), *_of_vectors(folder)]
    if own := list(_of_its_own_models(config)):
        cure = "its image for CPUs runs onnx/model.onnx instead"
        if not (folder / "onnx" / "model.onnx").exists():
            cure = f"with `export.onnx: true`, {cure}"
        warnings += [f"{each}; {cure}" for each in own]
    return [f"text-embeddings-inference {each}" for each in warnings]


def _of_texts(folder: Path, config: dict[str, Any]) -> Iterator[str]:
    if not (folder / "tokenizer.json").exists():
        yield "can't load the folder: it has no tokenizer.json, so its tokenizer is not a fast one"
    prompts = _read(folder / "config_sentence_transformers.json")["prompts"]
    if named := [name for name, prompt in prompts.items() if prompt]:
        shown = " or ".join(f'"prompt_name": "{name}"' for name in named)
        yield (
            f"puts no prompt before texts by itself, also not the default one: each request must say {shown}, or start "
            f"it with --default-prompt-name {named[0]}"
        )
    longest = _read(folder / "sentence_bert_config.json")["max_seq_length"]
    if longest > MAX_BATCH_TOKENS:
        yield (
            f"cuts texts to {MAX_BATCH_TOKENS:,} of their {longest:,} tokens unless started with "
            f"--max-batch-tokens {longest}"
        )
    if not isinstance(config.get("max_position_embeddings"), int):
        yield "can't load the folder: config.json has no max_position_embeddings"


def _of_vectors(folder: Path) -> Iterator[str]:
    flags = _read(folder / "1_Pooling" / "config.json")
    if not any(flags[flag] for flag in POOLINGS):
        mode = next(flag for flag, is_set in flags.items() if is_set is True)
        yield f"can't load the folder: it does not pool as {mode.removeprefix('pooling_mode_')}"


def _of_its_own_models(config: dict[str, Any]) -> Iterator[str]:
    """Say what its implementations of the models, which compute in Rust, do not read as transformers does."""
    kind = config["model_type"]
    if kind not in {*REQUIRED, *UNCHECKED}:
        yield f"has no model of type {kind}"
    elif missing := sorted(key for key in REQUIRED.get(kind, ()) if config.get(key) is None):
        yield f"can't read the config.json of a {kind} as transformers writes it: it expects {', '.join(missing)}"
    elif kind in GPU_ONLY:
        yield f"runs {kind} on NVIDIA GPUs only, in float16"
    key = "is_causal" if kind == "qwen2" else "use_bidirectional_attention"
    if config.get("is_causal") is False and key != "is_causal" and not config.get(key):
        yield f"gives other vectors: it takes {kind} as causal, as it reads {key} instead of `is_causal: false`"


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return content
