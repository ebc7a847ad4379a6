"""Cut a model to its first layers: smaller and faster, and for a pretrained encoder a good start of training."""

import json
import re
import shutil
import tempfile
from hashlib import blake2b
from pathlib import Path

from huggingface_hub.constants import HF_HOME
from transformers import AutoConfig

from .model_folder import ModelError, read_json

_LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)\.")
"""A part of the names of a layer's weights: BERT's `encoder.layer.3.`, T5's `encoder.block.3.`, GPT-2's `h.3.`."""
_INDEX = "model.safetensors.index.json"


def keep_first_layers(folder: Path, layers: int, trust_remote_code: bool = False) -> Path:
    """Return a folder with the first layers of a model, kept with the hub's downloads.

    Modules, tokenizer and prompts stay as they are. Loading it later finds weights that are lacking or in excess, as it
    does for every folder.

    Raises:
        ModelError: the model has fewer layers, or transformers can't read its configuration.
    """
    file, key, present = check_first_layers(folder, layers, trust_remote_code)
    if layers == present:
        return folder
    cut = Path(HF_HOME) / "conan" / f"{folder.name}-{layers}-layers-{_identify(folder)}"
    if not cut.is_dir():
        cut.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cut.parent) as place:
            written = Path(place, "model")
            shutil.copytree(folder, written, ignore=shutil.ignore_patterns("*.safetensors", "onnx", "openvino", ".*"))
            _cut_config(written / file.relative_to(folder), key, present, layers)
            for file in folder.glob("**/*.safetensors"):
                _cut_weights(file, written / file.relative_to(folder), layers)
            _cut_index(written / file.parent.relative_to(folder) / _INDEX, layers)
            try:
                written.replace(cut)
            except OSError:
                if not cut.is_dir():  # else another process was faster
                    raise
    return cut


def check_first_layers(folder: Path, layers: int, trust_remote_code: bool = False) -> tuple[Path, str, int]:
    """Check that a model has enough layers.

    Returns its configuration file, the key in it that says how many layers there are, and how many.

    Raises:
        ModelError: as for `keep_first_layers`.
    """
    configs = [file for file in sorted(folder.glob("**/config.json")) if "model_type" in read_json(file)]
    if len(configs) != 1:
        raise ModelError(f"{folder}: {len(configs)} files config.json name a `model_type`; expected one, of the model")
    try:
        config = AutoConfig.from_pretrained(configs[0].parent, trust_remote_code=trust_remote_code)
        present, key = config.num_hidden_layers, config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    except (AttributeError, OSError, ValueError) as error:
        raise ModelError(f"{configs[0]}: can't tell how many layers the model has: {error}") from error
    if not 1 <= layers <= present:
        raise ModelError(f"{folder} has {present} layers; ask for 1 to {present} of them, as in [:{present}]")
    return configs[0], key, present


def _identify(folder: Path) -> str:
    """Hash where a model lies and its files' sizes and times; reading gigabytes of weights would take too long."""
    found = sorted(file for file in folder.glob("**/*") if file.is_file())
    states = [(str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in found]
    return blake2b(repr([str(folder.resolve()), states]).encode(), digest_size=8).hexdigest()


def _cut_config(file: Path, key: str, present: int, layers: int) -> None:
    config = read_json(file)
    config[key] = layers
    if len(config.get("layer_types") or []) == present:  # the kinds of attention of Gemma 3 and others
        config["layer_types"] = config["layer_types"][:layers]
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


def _cut_weights(file: Path, to: Path, layers: int) -> None:
    from safetensors.torch import load_file, save_file

    kept = {name: weight for name, weight in load_file(file).items() if _is_kept(name, layers)}
    save_file(kept, to, metadata={"format": "pt"})


def _cut_index(file: Path, layers: int) -> None:
    """Drop names from the index of a model that is stored in several files; there may be none."""
    if file.exists():
        index = read_json(file)
        index["weight_map"] = {name: at for name, at in index["weight_map"].items() if _is_kept(name, layers)}
        file.write_text(json.dumps(index, indent=2), encoding="utf-8")


def _is_kept(name: str, layers: int) -> bool:
    found = _LAYER.search(name)
    return found is None or int(found[1]) < layers
