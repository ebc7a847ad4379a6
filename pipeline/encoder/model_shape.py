"""Check a model before it is loaded: its layout, configuration and prompts; the transformer's weights are not read."""

from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig, AutoModel, PretrainedConfig

from ...schemas.settings import EncoderSettings
from .model_folder import ModelError
from .model_layout import Layout, read_layout
from .prompts import read_prompts
from .transformer import default_pooling, load_tokenizer, refuse_other_kinds


class ModelShape(NamedTuple):
    """The layout of a model, its transformer's configuration, and the width of its vectors."""

    layout: Layout
    config: PretrainedConfig
    width: int


def read_shape(folder: Path, settings: EncoderSettings, kind: type[Any] = AutoModel) -> ModelShape:
    """Read the shape of the model in a folder, and check that it can be used with these settings.

    `kind` is as in `load_transformer`. Weights of the transformer are not read, so they may still be damaged, or not
    fit the configuration.

    Raises:
        ModelError: the model can't be read, or its pooling is unknown.
    """
    layout = read_layout(folder)
    refuse_other_kinds(layout, kind, settings.trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(layout.encoder, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{layout.encoder}: no Hugging Face model can be loaded from here: {error}") from error
    load_tokenizer(layout.encoder, settings.trust_remote_code)
    if not any(layout.encoder.glob("*.safetensors")):
        raise ModelError(f"{layout.encoder}: no weights in the format safetensors; save the model in this format")
    if settings.pooling is None:
        default_pooling(layout, config.model_type)
    read_prompts(folder, settings)
    width = len(layout.dense[-1].weight) if layout.dense else int(config.hidden_size)
    return ModelShape(layout, config, width)
