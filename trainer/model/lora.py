"""LoRA (arXiv 2106.09685): adapters that are trained in place of the encoder's weights, and merged at export."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...pipeline.encoder.encoder import Vectors, encode
from ...schemas.errors import MissingExtraError, RecipeError
from ...schemas.registry import did_you_mean
from ...schemas.training_settings import LoRASettings
from ..job import TrainingError
from .embedding_model import EmbeddingModel, encoder_of, load

LARGEST_DIFFERENCE = 1e-4
"""Chosen here: unit vectors of merged float32 weights differ from those of their adapters by about 1e-6."""


def find_targets(encoder: PreTrainedModel, targets: list[str], place: str) -> list[str]:
    """Return the names of the linear layers whose names end in one of `targets`; all of them if it is empty.

    BERT's pooler is left out, as no vector depends on it. `place` says where the targets are, for the message.

    Raises:
        RecipeError: a target fits no linear layer.
    """
    linear = [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith("pooler.")
    ]
    for target in targets:
        if not any(_ends_in(name, target) for name in linear):
            ends = sorted({name.rsplit(".", 1)[-1] for name in linear})
            raise RecipeError(f"{place}: no linear layer's name ends in {target!r}{did_you_mean(target, ends)}")
    return [name for name in linear if not targets or any(_ends_in(name, target) for target in targets)]


def _ends_in(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def add_adapters(encoder: PreTrainedModel, settings: LoRASettings, place: str = "lora") -> None:
    """Add adapters to an encoder, in place, and freeze its own weights. Its vectors stay the same until it is trained.

    Raises:
        MissingExtraError: the extra `lora` is not installed.
        RecipeError: a target fits no linear layer.
    """
    if not find_spec("peft"):
        raise MissingExtraError("`lora`", "lora")
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=find_targets(encoder, settings.targets, place),
    )
    inject_adapter_in_model(config, encoder)


def merged_weights(encoder: PreTrainedModel) -> dict[str, Tensor]:
    """Return an encoder's weights with its adapters merged, under the names that it had without them."""
    weights = {
        name.replace(".base_layer.", "."): value for name, value in encoder.state_dict().items() if ".lora_" not in name
    }
    for name, layer in _adapted(encoder).items():
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + layer.get_delta_weight("default")
    return weights


def check_export(
    folder: Path,
    trained: EmbeddingModel,
    untrained: EmbeddingModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
) -> None:
    """Check that an exported folder has the vectors of the trained adapters, and not those of the model without them.

    `untrained` is the model as it was before training. It is overwritten with the trained weights: ZeRO 3 adds hooks to
    the modules of `trained`, which could run on all ranks together only.

    Raises:
        TrainingError: the vectors of the texts are not those that were trained, or adapters changed nothing.
    """
    untrained.load_state_dict(trained.state_dict())
    expected = _vectors(untrained, tokenizer, texts)
    for layer in _adapted(untrained.encoder).values():
        nn.init.zeros_(layer.lora_B["default"].weight)  # as LoRA begins
    before = _vectors(untrained, tokenizer, texts)
    exported = _vectors(*load(folder, max_length=tokenizer.model_max_length), texts)
    difference, learnt = (float(np.abs(exported - each).max()) for each in (expected, before))
    if difference > LARGEST_DIFFERENCE:
        raise TrainingError(
            f"{folder}: the exported vectors differ from the trained ones by up to {difference:.1e}: adapters were not"
            " merged as they were trained; please report this"
        )
    if learnt <= difference:
        raise TrainingError(
            f"{folder}: the adapters of `lora` changed no vector, so nothing was learnt but the linear layer; raise "
            "`learning_rate`, or check `lora.targets`"
        )


def _vectors(model: EmbeddingModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Vectors:
    return encode(encoder_of(model.eval(), tokenizer), texts)


def _adapted(encoder: PreTrainedModel) -> dict[str, Any]:
    return {name: module for name, module in encoder.named_modules() if hasattr(module, "lora_B")}
