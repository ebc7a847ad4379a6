"""The embedding model: a Hugging Face encoder, pooling and a linear layer (paper §3.1)."""
# ruff: noqa: N806 (capital letters are shapes: hidden_NLH is [n, L, H])

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...pipeline.encoder.encoder import BATCH_TOKENS, GPU_BATCH_TOKENS, Encoder, best_device, best_precision
from ...pipeline.encoder.model_folder import ModelError, find_model
from ...pipeline.encoder.model_layout import Dense, Layout, read_layout
from ...pipeline.encoder.pooling import pool
from ...pipeline.encoder.prompts import read_prompts
from ...pipeline.encoder.transformer import default_pooling, load_transformer
from ...schemas.prompts import Prompts
from ...schemas.settings import EncoderSettings, Pooling, PromptSettings, SourcePrompts
from ...schemas.training_settings import OptimizerSettings
from .attention import soft_mask
from .onednn_linear import use_onednn_linear
from .packing import hidden_states, make_packable

IDENTITY = "torch.nn.modules.linear.Identity"


class EmbeddingModel(nn.Module):
    """Maps the tokens of each text to one vector, not normalised; losses and users of the model normalise it.

    `soft_alpha` is how far the attention of a bidirectional decoder has got in training, from 0 (causal) to 1; see
    attention.py. It is None without a soft mask, and has no effect outside of training.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        dimension: int | None = 1792,
        pooling: Pooling = "mean",
        prompts: Prompts | None = None,
        max_length: int | None = None,
    ) -> None:
        """Build a model whose vectors have `dimension` dimensions; None leaves the linear layer out.

        The layer is initialised from torch's global seed. The encoder's own pooler (BERT has one) is saved with it but
        frozen, as it is not used. BERT-large with dimension 1792 thus has the paper's 326M trainable parameters.
        `prompts` and `max_length`, the model's longest text in tokens, are written into an exported folder.
        """
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.prompts = prompts or Prompts()
        self.max_length = max_length
        hidden = encoder.config.hidden_size
        self.head = nn.Linear(hidden, dimension) if dimension is not None else None
        self.dimension: int = dimension or hidden
        self.first_temperature = 1.0
        self.log_temperature: nn.Parameter | None = None
        self.soft_alpha: float | None = None
        self.packable = make_packable(encoder)
        if (pooler := getattr(encoder, "pooler", None)) is not None:
            pooler.requires_grad_(False)

    def learn_temperature(self, start: float) -> None:
        """Make the loss's temperature a parameter, in log space (CLIP, arXiv 2103.00020, §2.5)."""
        self.first_temperature = start
        # Store the change from `start`: bf16 is precise enough near zero. DeepSpeed does not accept 0-d parameters.
        self.log_temperature = nn.Parameter(torch.zeros(1))

    @property
    def temperature(self) -> Tensor | None:
        """The learnt temperature, a scalar of at least 0.01 (CLIP, §2.5), or None if the temperature is fixed."""
        if self.log_temperature is None:
            return None
        temperature = self.first_temperature * self.log_temperature.float().exp()[0]
        return temperature + (temperature.clamp(min=0.01) - temperature).detach()  # the clamp must not stop gradients

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Return vectors [n, D] of texts [n, L]; the mask may be None if nothing is padded.

        No texts give [0, D], still attached to every parameter.
        """
        count = len(input_ids)
        if count == 0:  # encoders can't run on an empty batch, but a rank without texts needs gradients: run a dummy
            # Don't encode it in a separate call: under ZeRO 3 all ranks run the same modules in the same order.
            input_ids = attention_mask = torch.ones(1, 1, dtype=torch.long, device=input_ids.device)
        if self.packable and attention_mask is not None and input_ids.device.type == "cpu":
            hidden_NLH = hidden_states(self.encoder, input_ids, attention_mask)
        else:
            seen: Tensor | dict[str, Tensor] | None = attention_mask
            if self.training and self.soft_alpha is not None:
                seen = soft_mask(self.encoder, input_ids, attention_mask, self.soft_alpha)
            hidden_NLH = self.encoder(input_ids=input_ids, attention_mask=seen).last_hidden_state
        pooled_NH = pool(hidden_NLH, attention_mask, self.pooling)[:count]
        return pooled_NH if self.head is None else self.head(pooled_NH)


def precision_of(settings: OptimizerSettings) -> Literal["bf16", "fp16", "fp32"]:
    """Return the precision of a run: `auto` means bf16 if the device supports it, but float32 under ZeRO 0."""
    if settings.precision != "auto":
        return settings.precision
    has_bf16 = best_precision(torch.device(best_device())) == torch.bfloat16
    return "bf16" if has_bf16 and settings.zero_stage > 0 else "fp32"


def warn_of_slow_precision(settings: OptimizerSettings) -> list[str]:
    """Return a warning if a run will compute on a CPU that has no instructions for its precision; else nothing."""
    precision = precision_of(settings)
    if precision == "fp32" or best_device() != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return []
    supported = {"bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported, "fp16": torch.ops.mkldnn._is_mkldnn_fp16_supported}
    if supported[precision]():
        return []
    return [
        f"this CPU has no instructions for {precision}, which takes many times as long as fp32; leave out `precision`"
    ]


def load(
    name: str | Path,
    dimension: int | None = None,
    pooling: Pooling | None = None,
    max_length: int | None = None,
    prompts: PromptSettings | None = None,
    sources: Mapping[str, SourcePrompts] = {},
) -> tuple[EmbeddingModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer from a folder or a hub name: a SentenceTransformer or a plain encoder.

    `dimension` is the width of the linear layer, which is new (from torch's seed) if none was saved; None keeps the
    saved layer, or none. `pooling` and `prompts` default to the folder's; `sources` are the prompts of the sources that
    have their own. `tokenizer.model_max_length` is `max_length`
    or, if that is shorter, what the folder and the encoder's positions allow. Weights are read as float32, from
    safetensors only; no code from a model is run. The model is in training mode.

    Raises:
        ModelError: the model can't be read, its saved layer has another width than `dimension`, it has layers after the
            pooling that can't be trained here, or it leaves prompts out of the pooling and has some.
    """
    folder = find_model(str(name))
    layout = read_layout(folder)
    width = check_trainable(folder, layout, dimension)
    chosen = read_prompts(folder, EncoderSettings(model=str(name), prompts=prompts or PromptSettings()), sources)
    if not layout.includes_prompt and not chosen.are_empty():
        raise ModelError(
            f"{folder}: `include_prompt: false` leaves prompts out of the pooling, which training can't; set them to "
            '"" in `prompts`, and leave out `instruction` and `prompts` of sources'
        )
    encoder, tokenizer, longest = load_transformer(layout, max_length)
    model = EmbeddingModel(
        encoder, width, pooling or default_pooling(layout, encoder.config.model_type), chosen, longest
    )
    if model.head is not None and layout.dense:
        (saved,) = layout.dense
        model.head.load_state_dict({"weight": saved.weight, "bias": saved.bias})
    use_onednn_linear(model)
    return model.train(), tokenizer


def check_trainable(folder: Path, layout: Layout, dimension: int | None) -> int | None:
    """Return the width of the linear layer that a model trains with: its saved layer's, else `dimension` (maybe None).

    Raises:
        ModelError: its layers can't be trained here, or the saved one has another width than `dimension`.
    """
    if not layout.dense:
        return dimension
    saved = layout.dense[0]
    if len(layout.dense) > 1 or saved.activation != IDENTITY or saved.bias is None:
        raise ModelError(f"{folder}: can train only one linear layer, which must have a bias and no activation")
    if dimension not in (None, len(saved.weight)):
        raise ModelError(f"{folder} has a linear layer of width {len(saved.weight)}, not {dimension}")
    return len(saved.weight)


def encoder_of(model: EmbeddingModel, tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """Return an Encoder of a model in training. It shares the encoder's weights and copies the head's current ones."""
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
        prompts=model.prompts,
    )
