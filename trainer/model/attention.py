"""Causal, bidirectional and soft attention of decoders (Conan-embedding-v2, arXiv 2509.12892, eq. 3 and 4)."""
# ruff: noqa: N803, N806 (capital letters are shapes: mask_NL is [n, L])

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ...pipeline.encoder.model_folder import ModelError
from ...schemas.training_settings import Attention

DECODERS = {"gemma3_text", "llama", "mistral", "qwen2", "qwen3"}
"""Decoders of transformers whose attention `is_causal: false` in config.json makes bidirectional."""


def check_attention(config: PretrainedConfig, attention: Attention | None) -> None:
    """Raise ModelError unless the attention of this kind of model can be chosen. None keeps the model's own."""
    if attention is None:
        return
    if config.model_type not in DECODERS:
        raise ModelError(
            f"pretrain.attention: can be chosen for decoders only ({', '.join(sorted(DECODERS))}), but the model is of "
            f"type {config.model_type}; leave `attention` out"
        )
    if getattr(config, "use_bidirectional_attention", False):
        raise ModelError(
            "pretrain.attention: config.json sets use_bidirectional_attention, which also halves the sliding window, so"
            " the model is not causal to begin with; leave `attention` out"
        )


def set_attention(encoder: PreTrainedModel, attention: Attention | None) -> None:
    """Make a decoder causal or bidirectional; `soft` ends as bidirectional. Its saved config.json says which it is.

    Raises:
        ModelError: the attention of this kind of model can't be chosen.
    """
    check_attention(encoder.config, attention)
    if attention is not None:
        encoder.config.is_causal = attention == "causal"


def soft_mask(
    encoder: PreTrainedModel, ids_NL: Tensor, mask_NL: Tensor | None, alpha: float
) -> Tensor | dict[str, Tensor]:
    """Return the soft mask of a bidirectional decoder: what its `attention_mask` takes, added to the scores.

    Entries that causal attention shows are 0, those that bidirectional attention hides are minus infinity, and those
    that only bidirectional attention shows are log M (see `soft_weights`). So alpha 0 is causal attention, and alpha 1
    bidirectional. Layers with a sliding window have a mask of their own, within their window.
    """
    config = encoder.config
    mask_NL = torch.ones_like(ids_NL) if mask_NL is None else mask_NL
    weights_N1L = soft_weights(mask_NL, alpha)[:, None]
    position_L = torch.arange(mask_NL.shape[1], device=mask_NL.device)
    distance_LL = position_L[:, None] - position_L

    def mask_of(window: int | None) -> Tensor:
        causal_LL, shown_LL = distance_LL >= 0, torch.ones_like(distance_LL, dtype=torch.bool)
        if window is not None:  # as transformers has it: the window's end is hidden if causal, shown if bidirectional
            causal_LL, shown_LL = causal_LL & (distance_LL < window), distance_LL.abs() <= window
        weights_NLL = torch.where(causal_LL, 1.0, weights_N1L) * (shown_LL & (mask_NL[:, None] > 0))
        # Half of the lowest number is as good as minus infinity, and does not overflow when a score is added to it.
        return weights_NLL.log().clamp(min=torch.finfo(encoder.dtype).min / 2).to(encoder.dtype)[:, None]

    window = getattr(config, "sliding_window", None)
    if layer_types := getattr(config, "layer_types", None):
        return {kind: mask_of(window if kind == "sliding_attention" else None) for kind in set(layer_types)}
    return mask_of(window)


def soft_weights(mask_NL: Tensor, alpha: float) -> Tensor:
    """Return M [n, L], the factor of each column's attention weights above the diagonal: min(alpha · l / j, 1).

    Our reading of eq. 4, for column j (from 1) of a text of l tokens: the printed factor, i / l, would not reach 1
    before the end, and would show later columns sooner, against the paper's text. Columns of padding have no meaning.
    """
    columns_NL = mask_NL.cumsum(dim=1).clamp(min=1)
    return (alpha * mask_NL.sum(dim=1, keepdim=True) / columns_NL).clamp(max=1.0)
