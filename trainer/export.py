"""Write a trained model as a folder that `SentenceTransformer(folder)` loads."""

import json
import os
import shutil
from pathlib import Path

from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from .model import IDENTITY, EmbeddingModel


def export(model: EmbeddingModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> Path:
    """Write encoder, tokenizer, pooling and linear layer; vectors are raw and compared by cosine.

    The layout is the one that every sentence-transformers release since 2 reads, 6.2 included. It is written
    beside its place and renamed there whole; an earlier export of that name gives way only then. Raises
    FileExistsError where the place holds anything else.
    """
    folder = Path(folder).absolute()
    if folder.exists() and any(folder.iterdir()) and not (folder / "modules.json").exists():
        raise FileExistsError(f"{folder} holds something that is not an exported model; choose another place")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    replaced = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        _write(model, tokenizer, temporary)
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)  # last: should a rename fail, the earlier export is still there
    return folder


def _write(model: EmbeddingModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    model.encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    length = tokenizer.model_max_length
    _json(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    pooling = {
        "word_embedding_dimension": model.encoder.config.hidden_size,
        "pooling_mode_cls_token": model.pooling == "cls",
        "pooling_mode_mean_tokens": model.pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    _json(folder / "1_Pooling" / "config.json", pooling)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if (head := model.head) is not None:
        modules.append(("2_Dense", "Dense"))
        dense = {"in_features": head.in_features, "out_features": head.out_features, "bias": True}
        _json(folder / "2_Dense" / "config.json", {**dense, "activation_function": IDENTITY})
        weights = {f"linear.{key}": value.contiguous() for key, value in head.state_dict().items()}
        save_file(weights, folder / "2_Dense" / "model.safetensors")
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
        for index, (path, name) in enumerate(modules)
    ]
    _json(folder / "modules.json", listed)
    _json(
        folder / "config_sentence_transformers.json",
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )


def _json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
