"""Folders of models: where they are, what their weights hash to, what stands before a query. Reads no weights."""

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
"""FlagEmbedding's README: of bge's small, base and large models, for queries that search passages."""


class ModelError(ConanError):
    """A folder or a hub name that no embedding model can be read from."""


def find_model(name: str, trust_remote_code: bool = False) -> Path:
    """The folder of a model: the folder itself, or a hub model downloaded (safetensors, and code only if trusted).

    Raises:
        ModelError: neither a folder nor to be had from the hub.
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
            f"{name} is no folder here and can't be had from the Hugging Face hub ({type(error).__name__}); give the "
            "path of a model folder, or run where the hub can be reached"
        ) from error


def read_json(path: Path) -> Any:
    """A JSON file, or an empty object where there is none. Raises ModelError for one that can't be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a JSON file: {error}") from error


def weights_fingerprint(folder: Path) -> str:
    """A 128-bit hash (hex) of a folder's weights, vocabulary and layout."""
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
    """What stands before each query: what the settings say, else the folder, else bge's by its name, else nothing."""
    if settings.query_prompt is not None:
        return settings.query_prompt
    prompts = read_json(folder / "config_sentence_transformers.json").get("prompts") or {}
    language = re.match(r"bge-(?:small|base|large)-(zh|en)\b", Path(settings.model).name)
    return str(prompts.get("query") or (BGE_QUERY_PROMPTS[language[1]] if language else ""))
