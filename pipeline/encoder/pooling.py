"""Pooling as in sentence-transformers: one vector per text from the vectors of its tokens."""
# ruff: noqa: N803, N806 (capital letters are shapes: hidden_NLH is [n, L, H])

from collections.abc import Callable

import torch
from torch import Tensor

from ...schemas.settings import Pooling


def pool(hidden_NLH: Tensor, mask_NL: Tensor | None, pooling: Pooling, skipped: int = 0) -> Tensor:
    """Pool token vectors to one vector per text, [n, H].

    The mask is 1 for tokens and 0 for the padding to their right; None means that nothing is padded. The first
    `skipped` tokens of each text, those of a prompt, are left out.
    """
    if pooling == "cls":
        return hidden_NLH[:, min(skipped, hidden_NLH.shape[1] - 1)]
    if mask_NL is None:
        mask_NL = torch.ones(hidden_NLH.shape[:2], dtype=torch.int64, device=hidden_NLH.device)
    places_1L = torch.arange(hidden_NLH.shape[1], device=hidden_NLH.device)[None]
    if skipped:
        mask_NL = mask_NL * (places_1L >= skipped)
    return POOLINGS[pooling](hidden_NLH, mask_NL, places_1L)


def _lasttoken(hidden_NLH: Tensor, mask_NL: Tensor, places_1L: Tensor) -> Tensor:
    last_N = (mask_NL * places_1L).amax(dim=1)
    return hidden_NLH.gather(1, last_N[:, None, None].expand(-1, 1, hidden_NLH.shape[2]))[:, 0]


def _max(hidden_NLH: Tensor, mask_NL: Tensor, places_1L: Tensor) -> Tensor:
    return hidden_NLH.masked_fill(mask_NL[:, :, None] == 0, float("-inf")).amax(dim=1)


def _mean(hidden_NLH: Tensor, mask_NL: Tensor, places_1L: Tensor) -> Tensor:
    return _weighted_sum(hidden_NLH, mask_NL) / mask_NL.sum(dim=1, keepdim=True).clamp(min=1)


def _mean_sqrt_len(hidden_NLH: Tensor, mask_NL: Tensor, places_1L: Tensor) -> Tensor:
    return _weighted_sum(hidden_NLH, mask_NL) / mask_NL.sum(dim=1, keepdim=True).clamp(min=1).sqrt()


def _weightedmean(hidden_NLH: Tensor, mask_NL: Tensor, places_1L: Tensor) -> Tensor:
    weights_NL = mask_NL * (places_1L + 1)
    return _weighted_sum(hidden_NLH, weights_NL) / weights_NL.sum(dim=1, keepdim=True).clamp(min=1)


def _weighted_sum(hidden_NLH: Tensor, weights_NL: Tensor) -> Tensor:
    return (hidden_NLH * weights_NL[:, :, None].to(hidden_NLH.dtype)).sum(dim=1)


POOLINGS: dict[Pooling, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "max": _max,
    "lasttoken": _lasttoken,
    "weightedmean": _weightedmean,
    "mean_sqrt_len": _mean_sqrt_len,
}
"""Each mode but cls, as a function of hidden states [n, L, H], mask [n, L] and places [1, L]."""
