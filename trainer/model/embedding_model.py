"""The embedding model: a Hugging Face encoder, pooling, and a linear layer (paper §3.1)."""
# ruff: noqa: N806 (capital letters are shapes: hidden_NLH is [n, L, H])

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...pipeline.encoder.encoder import BATCH_TOKENS, GPU_BATCH_TOKENS, Encoder, best_device, best_precision, pool
from ...pipeline.encoder.model_folder import ModelError, find_model
from ...pipeline.encoder.model_layout import Dense, Layout, Pooling, load_transformer, read_layout
from ...schemas.training_settings import OptimizerSettings
from .onednn_linear import use_onednn_linear
from .packing import hidden_states, make_packable

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
        self.first_temperature = 1.0
        self.log_temperature: nn.Parameter | None = None
        self.packable = make_packable(encoder)
        if (pooler := getattr(encoder, "pooler", None)) is not None:
            pooler.requires_grad_(False)

    def learn_temperature(self, start: float) -> None:
        """Make the temperature of the loss a weight like others, by its logarithm (CLIP, arXiv 2103.00020, §2.5)."""
        self.first_temperature = start
        # By how much it has moved: near zero bf16 is fine enough for that. DeepSpeed takes no scalars.
        self.log_temperature = nn.Parameter(torch.zeros(1))

    @property
    def temperature(self) -> Tensor | None:
        """The learnt temperature, a scalar of at least 0.01 (CLIP, §2.5); None where it is fixed."""
        if self.log_temperature is None:
            return None
        temperature = self.first_temperature * self.log_temperature.float().exp()[0]
        return temperature + (temperature.clamp(min=0.01) - temperature).detach()  # its gradient can bring it back

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Vectors [n, D] of texts [n, L], without a mask where nothing is padded.

        Zero texts give [0, D], still attached to every parameter.
        """
        count = len(input_ids)
        if count == 0:  # encoders cannot run on nothing, and a rank without texts needs its gradients
            # Not by a call of its own: under ZeRO 3 all ranks run the same modules in the same order.
            input_ids = attention_mask = torch.ones(1, 1, dtype=torch.long, device=input_ids.device)
        if self.packable and attention_mask is not None and input_ids.device.type == "cpu":
            hidden_NLH = hidden_states(self.encoder, input_ids, attention_mask)
        else:
            hidden_NLH = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        pooled_NH = pool(hidden_NLH, attention_mask, self.pooling)[:count]
        return pooled_NH if self.head is None else self.head(pooled_NH)


def precision_of(settings: OptimizerSettings) -> Literal["bf16", "fp16", "fp32"]:
    """What a run computes in: `auto` is bf16 where the device itself has it, but float32 under ZeRO 0."""
    if settings.precision != "auto":
        return settings.precision
    has_bf16 = best_precision(torch.device(best_device())) == torch.bfloat16
    return "bf16" if has_bf16 and settings.zero_stage > 0 else "fp32"


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
    Weights are read as float32 from safetensors only, and no code of a model is run. The model is in training mode.

    Raises:
        ModelError: no model to be read there, a saved layer of another width than asked for, or layers after the
            pooling that training can't go on from.
    """
    folder = find_model(str(name))
    layout = read_layout(folder)
    saved = layout.dense[0] if layout.dense else None
    if len(layout.dense) > 1 or (saved is not None and (saved.activation != IDENTITY or saved.bias is None)):
        raise ModelError(f"{folder}: only one linear layer, with bias and without activation, can be trained")
    width = dimension if saved is None else len(saved.weight)
    if dimension not in (None, width):
        raise ModelError(f"{name} has a linear layer of width {width}, not {dimension}")
    encoder, tokenizer = load_transformer(layout, max_length)
    model = EmbeddingModel(encoder, width, pooling or layout.pooling or "mean")
    if model.head is not None and saved is not None:
        model.head.load_state_dict({"weight": saved.weight, "bias": saved.bias})
    use_onednn_linear(model)
    return model.train(), tokenizer


def encoder_of(model: EmbeddingModel, tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """A model that is being trained as one that encodes; the weights are the same, the head's as they are now."""
    device, head = next(model.parameters()).device, model.head
    dense = [] if head is None else [Dense(head.weight.float(), head.bias.float(), IDENTITY)]
    return Encoder(
        model=model.encoder,
        tokenizer=tokenizer,
        layout=Layout(Path(), dense=dense),
        pooling=model.pooling,
        max_length=tokenizer.model_max_length,
        batch_tokens=BATCH_TOKENS.get(device.type, GPU_BATCH_TOKENS),
        fingerprint="",
        device=device,
    )
