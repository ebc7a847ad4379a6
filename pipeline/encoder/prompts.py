"""Read which prompts a model's folder names, and list those of texts; nothing here loads weights."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from ...schemas.prompts import AFTER_INSTRUCTION, Prompts, Side
from ...schemas.settings import EncoderSettings, SourcePrompts
from .model_folder import ModelError, anything, one_of, read_known

BGE_QUERY_PROMPTS = {
    "zh": "为这个句子生成表示以用于检索相关文章：",
    "en": "Represent this sentence for searching relevant passages: ",
}
"""From the README of FlagEmbedding: the prompts of bge's small, base and large models for retrieval queries."""

NAMES = {"query": ("query",), "passage": ("document", "passage", "corpus")}
"""Names of a side's prompt in a folder; the first that is there wins (sentence-transformers' `encode_document`)."""

FILE = "config_sentence_transformers.json"
_INSTRUCTED = re.compile(r"Instruct: .+(\nQuery: ?)", re.DOTALL)
_KNOWN = {
    "__version__": anything,
    "model_type": one_of(None, "SentenceTransformer"),
    "prompts": lambda value: isinstance(value, dict) and all(isinstance(text, str | None) for text in value.values()),
    "default_prompt_name": lambda value: isinstance(value, str | None),
    "similarity_fn_name": one_of(None, "cosine", "dot"),
    "truncate_dim": one_of(None),
    "id2label": anything,  # of classifiers, which the filter reads
}


def read_model_config(folder: Path) -> dict[str, Any]:
    """Read config_sentence_transformers.json; a missing file is {}.

    Raises:
        ModelError: the file has a key or value that Conan does not follow.
    """
    config = read_known(folder / FILE, _KNOWN)
    default, prompts = config.get("default_prompt_name"), config.get("prompts") or {}
    if default is not None and default not in prompts:
        named = ", ".join(prompts) or "none"
        raise ModelError(f"{folder / FILE}: `default_prompt_name: {default}` is not among `prompts`, which has {named}")
    return config


def read_named_prompts(folder: Path) -> dict[str, str]:
    """Read all prompts of a folder by their names. Raises ModelError as `read_model_config` does."""
    prompts = read_model_config(folder).get("prompts") or {}
    return {name: text for name, text in prompts.items() if text is not None}


def is_instruction(prompt: str) -> bool:
    """Whether a prompt has the form in which instruction-tuned models are given the task of their queries."""
    return _INSTRUCTED.fullmatch(prompt) is not None


def read_prompts(
    folder: Path, settings: EncoderSettings, sources: Mapping[str, SourcePrompts] = {}, retrieves: bool = True
) -> Prompts:
    """Return the prompts of a model: from the settings, else from its folder, else empty; and those of `sources`.

    If `retrieves`, a bge model whose folder names no prompt for queries gets the one of FlagEmbedding's README. If the
    prompt for queries is an instruction, those of the sources end as it does.

    Raises:
        ModelError: the folder's configuration can't be read.
    """
    config = read_model_config(folder)
    named = read_named_prompts(folder)
    found = {side: next((named[name] for name in names if name in named), None) for side, names in NAMES.items()}
    language = re.match(r"bge-(?:small|base|large)-(zh|en)\b", Path(settings.model).name)
    if found["query"] is None and retrieves and language:
        found["query"] = BGE_QUERY_PROMPTS[language[1]]
    default = config.get("default_prompt_name")
    found["sentence"] = named.get(default) if default is not None else None
    chosen = settings.prompts.model_dump(exclude_none=True)
    of_queries = (chosen.get("query"), found["query"])
    instructed = next(filter(None, (_INSTRUCTED.fullmatch(text) for text in of_queries if text)), None)
    prompts = Prompts(
        **{side: chosen.get(side, text or "") for side, text in found.items()},
        after_instruction=instructed[1] if instructed else AFTER_INSTRUCTION,
    )
    return replace(prompts, sources={name: prompts.override(own) for name, own in sources.items()})


def list_prompts(prompts: Prompts, side: Side, sources: pl.Series) -> pl.Series:
    """Return what is put before each text of a side; `sources` are the names of the texts' sources."""
    common, own = prompts.of_side(side)
    return sources.cast(pl.String).replace_strict(own, default=common, return_dtype=pl.String).alias("prompt")
