"""The embedding model: a Hugging Face encoder, pooling, and a linear layer (paper §3.1)."""
# ruff: noqa: N806 (capital letters are shapes: hidden_NLH is [n, L, H])

import json
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

Pooling = Literal["mean", "cls"]

IDENTITY = "torch.nn.modules.linear.Identity"


class EmbeddingModel(nn.Module):
    """Tokens to one raw vector a text; losses and users normalise it."""

    def __init__(self, encoder: PreTrainedModel, dimension: int | None = 1792, pooling: Pooling = "mean") -> None:
        """`dimension` is the width of the vectors; None leaves the linear layer out.

        The layer starts from torch's seed. The encoder's own pooler (BERT has one) stays in saved folders but is
        frozen, as nothing reads it; so BERT-large with 1792 has the paper's 326M parameters to train.
        """
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        hidden = encoder.config.hidden_size
        self.head = nn.Linear(hidden, dimension) if dimension is not None else None
        self.dimension: int = dimension or hidden
        if (pooler := getattr(encoder, "pooler", None)) is not None:
            pooler.requires_grad_(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors [n, D] of texts [n, L]; zero texts give [0, D], still attached to every parameter."""
        if not len(input_ids):  # encoders cannot run on nothing, and a rank without texts needs its gradients
            one = torch.ones(1, 1, dtype=torch.long, device=input_ids.device)
            vector_1D: Tensor = self(one, one)
            return vector_1D[:0]
        hidden_NLH: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "cls":
            pooled_NH = hidden_NLH[:, 0]
        else:
            mask_NL1 = attention_mask.unsqueeze(-1).to(hidden_NLH.dtype)
            pooled_NH = (hidden_NLH * mask_NL1).sum(dim=1) / mask_NL1.sum(dim=1).clamp(min=1)
        return pooled_NH if self.head is None else self.head(pooled_NH)


def load(
    name: str | Path,
    dimension: int | None = None,
    pooling: Pooling | None = None,
    max_length: int | None = None,
) -> tuple[EmbeddingModel, PreTrainedTokenizerBase]:
    """Read a model and its tokenizer from a folder or a hub name: SentenceTransformer layout or a plain encoder.

    `dimension` asks for a linear layer of that width: the saved one, or a new one from torch's seed where none was
    saved; None takes what is there. `pooling` and `max_length` default to what the folder says, else mean and
    the tokenizer's own; the length never exceeds the encoder's positions and is `tokenizer.model_max_length`.
    Weights are read as float32 from safetensors only, and no code of a model is run.
    Raises ValueError for a layout with other modules, and for a saved layer of another width than asked for.
    """
    folder = Path(name) if Path(name).is_dir() else _download(str(name))
    modules = _modules(folder)
    encoder_folder = folder / modules.get("Transformer", "")
    encoder = AutoModel.from_pretrained(
        encoder_folder,
        attn_implementation="sdpa",
        dtype=torch.float32,
        trust_remote_code=False,
        use_safetensors=True,
    )
    saved = _dense(folder / modules["Dense"]) if "Dense" in modules else {}
    width = len(saved["weight"]) if saved else dimension
    if dimension is not None and width != dimension:
        raise ValueError(f"{name} has a linear layer of width {width}, not {dimension}")
    if pooling is None:
        pooling = _pooling(folder / modules["Pooling"]) if "Pooling" in modules else "mean"
    model = EmbeddingModel(encoder, width, pooling)
    if model.head is not None and saved:
        model.head.load_state_dict(saved)

    tokenizer = AutoTokenizer.from_pretrained(encoder_folder, trust_remote_code=False)
    saved_length = _json(encoder_folder / "sentence_bert_config.json").get("max_seq_length")
    tokenizer.model_max_length = min(
        max_length or saved_length or tokenizer.model_max_length,
        getattr(encoder.config, "max_position_embeddings", tokenizer.model_max_length),
    )
    return model, tokenizer


def _download(name: str) -> Path:
    return Path(
        snapshot_download(
            name,
            allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"],
            ignore_patterns=["onnx/*", "openvino/*"],
        )
    )


def _modules(folder: Path) -> dict[str, str]:
    """The class names in modules.json and their paths; Normalize is left out, as cosine does not see it."""
    listed = [(each["type"].rsplit(".", 1)[-1], each["path"]) for each in _json(folder / "modules.json") or []]
    kept = [(name, path) for name, path in listed if name != "Normalize"]
    names = [name for name, _ in kept]
    if names not in ([], ["Transformer", "Pooling"], ["Transformer", "Pooling", "Dense"]):
        raise ValueError(f"{folder}/modules.json: expected Transformer, Pooling and perhaps Dense, got {names}")
    return dict(kept)


def _pooling(folder: Path) -> Pooling:
    """Read both forms of 1_Pooling/config.json: one flag a mode (before sentence-transformers 5.3), or its name."""
    config = _json(folder / "config.json")
    flags = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    on = [flags.get(key, key) for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    mode = config.get("pooling_mode") or "+".join(on)
    known: dict[str, Pooling] = {"mean": "mean", "cls": "cls"}
    if mode not in known:
        raise ValueError(f"{folder}: pooling must be mean or cls, not {mode}")
    return known[mode]


def _dense(folder: Path) -> dict[str, Tensor]:
    config = _json(folder / "config.json")
    if config.get("activation_function") != IDENTITY or not config.get("bias", True):
        raise ValueError(f"{folder}: only a linear layer with bias and without activation can be read")
    return {key.removeprefix("linear."): value for key, value in load_file(folder / "model.safetensors").items()}


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
