"""Settings of evaluation; settings.py says what a field's description and origin are."""

from typing import Literal

from pydantic import PositiveInt

from .settings import BATCH_TOKENS, Pooling, PromptSettings, Settings, setting

Quantization = Literal["int8", "binary"]


class EvaluateSettings(Settings):
    """Which models are evaluated, and how texts are encoded."""

    models: list[str] = setting(["finetune"], "Hub names, folders or training stages to compare.")
    matryoshka_dims: list[PositiveInt] = setting([], "Widths to cut vectors to, besides their full width.")
    quantize: list[Quantization] = setting(
        [],
        "Also search passages stored as `int8` (a byte per dimension) or `binary` (a bit per dimension, rescored), at"
        " every width.",
    )
    pooling: Pooling | None = setting(None, "How token vectors become one vector; by default what each folder says.")
    prompts: PromptSettings = setting(PromptSettings(), "Texts put before queries, passages and sentences.")
    trust_remote_code: bool = setting(
        False, "Run the Python code that comes with the models. Only for models whose code you trust."
    )
    max_length: int = setting(512, "Longest text, in tokens; the rest is cut off.", origin="paper §3.1", ge=2)
    batch_tokens: int | None = setting(None, BATCH_TOKENS, ge=16)
