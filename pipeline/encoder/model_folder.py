"""Find the folder of a model, hash its weights, and read its query prompt; nothing here loads the weights."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from ...schemas.errors import ConanError
from ...schemas.settings import EncoderSettings

BGE_QUERY_PROMPTS = {
    "zh": "为这个句子生成表示以用于检索相关文章：",
    "en": "Represent this sentence for searching relevant passages: ",
}
"""From the README of FlagEmbedding: the prompts of bge's small, base and large models for retrieval queries."""


class ModelError(ConanError):
    """A folder or hub name from which no embedding model can be loaded."""


def find_model(name: str, trust_remote_code: bool = False) -> Path:
    """Return the folder of a model: `name` itself if it is a folder, else the model of this name from the hub.

    The download takes weights only as safetensors, and the model's code only if it is trusted.

    Raises:
        ModelError: there is no such folder, and the hub has no such model or can't be reached.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors", *["*.py"] * trust_remote_code],
                ignore_patterns=["onnx/*", "openvino/*"],
            )
        )
    except Exception as error:
        raise ModelError(
            f"{name} is not a folder and can't be downloaded from the Hugging Face hub ({type(error).__name__}); pass "
            "the path of a model folder, or run this where the hub can be reached"
        ) from error


def read_json(path: Path) -> Any:
    """Read a JSON file, or return {} if there is none. Raises ModelError if it can't be parsed."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a JSON file: {error}") from error


def weights_fingerprint(folder: Path) -> str:
    """Return a 128-bit hash (hex) of the weights, tokenizer, configuration and code in a model's folder."""
    digest = hashlib.blake2b(digest_size=16)
    names = (
        "*.safetensors",
        "modules.json",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "*.py",
    )
    found = {file for name in (*names, "*.model") for file in [*folder.glob(name), *folder.glob(f"*/{name}")]}
    for file in sorted(found):
        digest.update(f"{file.relative_to(folder)} {file.stat().st_size} ".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def read_query_prompt(folder: Path, settings: EncoderSettings) -> str:
    """Return the prompt of queries: from the settings, else from the folder, else bge's (by its name), else none."""
    if settings.query_prompt is not None:
        return settings.query_prompt
    prompts = read_json(folder / "config_sentence_transformers.json").get("prompts") or {}
    language = re.match(r"bge-(?:small|base|large)-(zh|en)\b", Path(settings.model).name)
    return str(prompts.get("query") or (BGE_QUERY_PROMPTS[language[1]] if language else ""))
