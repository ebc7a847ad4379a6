"""Find the folder of a model, hash what its vectors depend on, and read its configuration; no weights are loaded."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from ...schemas.errors import ConanError
from .quantization import RANGES_FILE

_FIRST_LAYERS = re.compile(r"(.+)\[:(\d+)\]")

Known = Mapping[str, Callable[[Any], bool]]
"""The keys that a configuration may have, each with a test of its value."""


class ModelError(ConanError):
    """A folder or hub name from which no embedding model can be loaded."""


def find_model(name: str, trust_remote_code: bool = False) -> Path:
    """Return the folder of a model: `name` itself if it is a folder, else the model of this name from the hub.

    The download takes weights only as safetensors, and the model's code only if it is trusted. `NAME[:6]` is a model's
    first six layers.

    Raises:
        ModelError: there is no such folder, and the hub has no such model or can't be reached; or the model has fewer
            layers.
    """
    if Path(name).is_dir():
        return Path(name)
    if whole := _FIRST_LAYERS.fullmatch(name):
        from .first_layers import keep_first_layers  # imports transformers, which takes seconds

        return keep_first_layers(find_model(whole[1], trust_remote_code), int(whole[2]), trust_remote_code)
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


def find_local_model(name: str, trust_remote_code: bool = False) -> Path | None:
    """Return the folder of a model without downloading anything; None if it would have to be downloaded.

    The folder of `NAME[:6]` is that of NAME, which has as many layers or more.

    Raises:
        ModelError: no folder and no model of the hub can have this name, or the model has fewer layers.
    """
    if Path(name).is_dir():
        return Path(name)
    if whole := _FIRST_LAYERS.fullmatch(name):
        folder = find_local_model(whole[1], trust_remote_code)
        if folder:
            from .first_layers import check_first_layers

            check_first_layers(folder, int(whole[2]), trust_remote_code)
        return folder
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except ValueError as error:
        raise ModelError(f"{name} is not a folder, nor a name that a model on the hub may have") from error
    return folder if any(folder.rglob("*.safetensors")) else None  # else only some of its files were needed so far


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing one is {}. Raises ModelError if it can't be parsed."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a JSON file: {error}") from error


def read_known(file: Path, known: Known) -> dict[str, Any]:
    """Read a configuration whose every key is understood; a missing file is {}.

    Raises:
        ModelError: the file is not a JSON object, or a key of it or its value is not known.
    """
    config = read_json(file)
    if not isinstance(config, dict):
        raise ModelError(f"{file}: expected a JSON object, got {json.dumps(config)[:80]}")
    for key, value in config.items():
        if key not in known or not known[key](value):
            shown = f"{key}: {json.dumps(value, ensure_ascii=False)[:120]}"
            cure = "set another value" if key in known else "remove the key if no vector depends on it"
            raise ModelError(
                f"{file}: `{shown}` is not understood, so vectors might come out wrong; {cure}, or save the model with "
                "sentence-transformers 2 to 6"
            )
    return config


def anything(_: Any) -> bool:
    """Accept any value: vectors do not depend on it, or its reader checks it."""
    return True


def one_of(*values: Any) -> Callable[[Any], bool]:
    """Accept any of these values."""
    return lambda value: value in values


def only_keys(*keys: str) -> Callable[[Any], bool]:
    """Accept nothing, or an object that has no keys but these."""
    return lambda value: not value or (isinstance(value, dict) and set(value) <= set(keys))


def weights_fingerprint(folder: Path) -> str:
    """Return a 128-bit hash (hex) of the weights, tokenizer, configuration and code in a model's folder.

    All such files count, those of its modules too, whatever their names: any of them may decide the vectors. Ranges of
    the vectors, found after them, do not.
    """
    digest = hashlib.blake2b(digest_size=16)
    suffixes = ("safetensors", "json", "jinja", "txt", "model", "py")
    found = {file for end in suffixes for depth in ("", "*/") for file in folder.glob(f"{depth}*.{end}")}
    for file in sorted(found - {folder / RANGES_FILE}):
        if file.relative_to(folder).parts[0] in ("onnx", "openvino"):  # the same weights for other runtimes
            continue
        digest.update(f"{file.relative_to(folder)} {file.stat().st_size} ".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
