"""Which passages of a batch are negatives of which queries. True in a mask means: left out of the denominator.

Shapes: N queries, M passages (the N positives, then the negatives of all queries). `owner_M` is each passage's query.
"""
# ruff: noqa: N803, N806 (the letters after _ are shapes: queries_ND is [N, D])

from collections.abc import Callable

import torch
from torch import Tensor

Ceiling = Callable[[Tensor], Tensor]
"""Maps the cosines of positives, [N], to the highest cosine that another query's passage may have as a negative."""


def mask_known(
    groups_M: Tensor, owner_M: Tensor, query_only_N: Tensor, in_batch_positives: bool, query_only_negatives: bool
) -> Tensor:
    """Return the mask [N, M] of passages that are never negatives, whatever the model; own positives are among them.

    These are texts of the query's own group, positives of other queries unless `in_batch_positives`, and all texts of
    other queries if one of the two is in `query_only_N`, or with `query_only_negatives`.
    """
    query_N = torch.arange(len(query_only_N))
    excluded_NM = groups_M == groups_M[query_N][:, None]
    if not in_batch_positives:
        excluded_NM[:, : len(query_N)] = True
    alone_N = query_only_N | query_only_negatives
    if alone_N.any():
        excluded_NM |= (owner_M != query_N[:, None]) & (alone_N[:, None] | alone_N[owner_M])
    return excluded_NM


def mask_false_negatives(scores_NM: Tensor, owner_M: Tensor, ceiling: Ceiling) -> Tensor:
    """Return the mask [N, M] of passages of other queries whose score is above the `ceiling` of the query's positive.

    The ceiling positive + 0.1 is that of Qwen3-Embedding (arXiv 2506.05176) and ms-swift, and with a guide's
    scores, positive − margin is that of GISTEmbed (arXiv 2402.16829; sentence-transformers' CachedGISTEmbedLoss). They
    all judge a query's own negatives, too; here these stay, as mining has already compared them with the positive.
    """
    query_N = torch.arange(len(scores_NM), device=scores_NM.device)
    above_NM = scores_NM > ceiling(scores_NM[query_N, query_N])[:, None]
    return above_NM & (owner_M != query_N[:, None])
