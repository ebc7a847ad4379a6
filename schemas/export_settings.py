"""Settings of the exported folder; settings.py says what a field's description and origin are."""

from typing import Literal

from .settings import Pooling, PromptSettings, Settings, setting


class ExportSettings(Settings):
    """The folder that SentenceTransformer loads."""

    model: str = setting("finetune", "Model to export: a training stage, hub name or folder.")
    folder: str = setting("model", "Folder to write, relative to the corpus.")
    precision: Literal["fp32", "fp16", "bf16"] = setting(
        "fp32", "Precision of the weights; fp16 and bf16 halve the files."
    )
    pooling: Pooling | None = setting(None, "How token vectors become one vector; by default what the folder says.")
    prompts: PromptSettings = setting(PromptSettings(), "Texts that the folder puts before queries and passages.")
    onnx: bool = setting(
        False,
        "Also write `onnx/model.onnx` for ONNX Runtime and transformers.js: token ids and mask in, vectors before"
        " normalisation out; and `onnx/model_quantized.onnx`, with int8 weights. Needs the extra `[onnx]`.",
    )

    calibration: int = setting(
        1_000,
        "Passages of the corpus whose vectors give `int8_ranges.safetensors`, with which vectors are stored as bytes; 0"
        " leaves the file out.",
        ge=0,
    )
