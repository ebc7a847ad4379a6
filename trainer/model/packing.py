"""Texts one after another in one row of tokens: nothing is padded, and products have few shapes.

For BERT and RoBERTa on a CPU. oneDNN prepares a product of a new shape anew, which takes a small model a fifth of a
step where each step has lengths of its own. A row is filled up to a multiple of tokens, so that shapes come again.
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
"""Types of models whose tokens meet in attention alone, and all of a text's there."""

ROW_STEP = 128
"""Chosen here: a row has a multiple of so many tokens. Half of it is lost on average; a step of 1 is 4 % slower."""

ATTENTION = "conan_packed"


def make_packable(encoder: PreTrainedModel) -> bool:
    """Let an encoder run packed rows as well as padded texts; returns whether it can, else it stays as it is."""
    packable = encoder.config.model_type in PACKABLE and not encoder.config.is_decoder
    if packable:
        encoder.set_attn_implementation(ATTENTION)
    return packable


def hidden_states(encoder: PreTrainedModel, ids_NL: Tensor, mask_NL: Tensor) -> Tensor:
    """What a packable encoder makes of texts [n, L], run in one row: [n, L, H], zeros where the mask has them."""
    lengths = mask_NL.sum(dim=1)
    longest_first = lengths.argsort(descending=True, stable=True)
    rows, places = mask_NL[longest_first].nonzero(as_tuple=True)
    rows = longest_first[rows]
    first = getattr(encoder.embeddings, "padding_idx", -1) + 1  # RoBERTa's positions begin after that of padding
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
    """Attention of each text in a row [1, heads, T, d] to itself; `groups` are lengths, and how many texts have each.

    Without groups, that of padded texts.
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
    """What sdpa_mask makes of padding, but without reading it to leave out a mask that masks nothing.

    Reading it would make the host wait for a GPU.
    """
    skip = allow_is_bidirectional_skip and attention_mask is None
    mask: Tensor | None = sdpa_mask(attention_mask=attention_mask, allow_is_bidirectional_skip=skip, **options)
    return mask


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _mask)
