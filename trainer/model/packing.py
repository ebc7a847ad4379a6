"""Sequence packing: runs all texts of a chunk as a single row of tokens, so that no text is padded.

For BERT and RoBERTa on a CPU. The row is padded to a multiple of ROW_STEP tokens, so that few matrix shapes occur:
oneDNN has to prepare a product for each new shape, which takes a small model a fifth of a step if shapes never repeat.
"""
# ruff: noqa: N803, N806 (capital letters are shapes: hidden_NLH is [n, L, H])

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKABLE = {"bert", "roberta", "xlm-roberta"}
"""Model types in which tokens interact only through attention, and each token attends to all others of its text."""

ROW_STEP = 128
"""Chosen here: rows are padded to a multiple of this, on average by half of it; a step of 1 would be 4 % slower."""

ATTENTION = "conan_packed"


def make_packable(encoder: PreTrainedModel) -> bool:
    """Enable an encoder to run packed rows as well as padded texts. Returns False, changing nothing, if it can't."""
    packable = encoder.config.model_type in PACKABLE and not encoder.config.is_decoder
    if packable:
        encoder.set_attn_implementation(ATTENTION)
    return packable


def hidden_states(encoder: PreTrainedModel, ids_NL: Tensor, mask_NL: Tensor) -> Tensor:
    """Run texts [n, L] through a packable encoder as one row; return hidden states [n, L, H], zero where masked."""
    lengths = mask_NL.sum(dim=1)
    longest_first = lengths.argsort(descending=True, stable=True)
    rows, places = mask_NL[longest_first].nonzero(as_tuple=True)
    rows = longest_first[rows]
    first = getattr(encoder.embeddings, "padding_idx", -1) + 1  # RoBERTa numbers positions from padding_idx + 1
    tokens = torch.stack([ids_NL[rows, places], places + first])
    ids_1T, positions_1T = functional.pad(tokens, (0, ROW_STEP - len(rows) % ROW_STEP)).unsqueeze(1)
    groups = list(Counter(filter(None, lengths[longest_first].tolist())).items())
    hidden_TH = encoder(input_ids=ids_1T, position_ids=positions_1T, groups=groups).last_hidden_state[0]
    hidden_NLH: Tensor = hidden_TH.new_zeros(*ids_NL.shape, hidden_TH.shape[1])
    hidden_NLH[rows, places] = hidden_TH[: len(rows)]
    return hidden_NLH


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    groups: list[tuple[int, int]] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention within each text of a packed row [1, heads, T, d]; `groups` are pairs of length and number of texts.

    Without `groups`, the input is padded texts, and SDPA attention is applied.
    """
    if groups is None:
        of_padded: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return of_padded
    sizes = [length * count for length, count in groups]
    sizes.append(query.shape[2] - sum(sizes))
    *states, fillers = zip(*(torch.split(each[0].transpose(0, 1), sizes) for each in (query, key, value)), strict=True)
    found = []
    for (length, count), own in zip(groups, states, strict=True):
        texts = [each.unflatten(0, (count, length)).transpose(1, 2) for each in own]
        found.append(sdpa_attention_forward(module, *texts, None, **options)[0].flatten(0, 1))
    return torch.cat([*found, torch.zeros_like(fillers[0])])[None], None


def _mask(*, attention_mask: Tensor | None, allow_is_bidirectional_skip: bool, **options: Any) -> Tensor | None:
    """Build sdpa_mask's mask, without its check whether the mask masks nothing and could be dropped.

    The check reads the mask, which would make the host wait for the GPU.
    """
    skip = allow_is_bidirectional_skip and attention_mask is None
    mask: Tensor | None = sdpa_mask(attention_mask=attention_mask, allow_is_bidirectional_skip=skip, **options)
    return mask


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _mask)
