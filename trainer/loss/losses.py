"""The losses, as pure functions of tensors, computed in float32 or wider. They know nothing of process groups.

Shapes: n queries, m passages, p scored pairs, D the width of an embedding.
"""
# ruff: noqa: N803, N806 (capital letters are shapes: queries_ND is [n, D])

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from ..transfer import to_device


def cosine_matrix(queries_ND: Tensor, passages_MD: Tensor) -> Tensor:
    """Cosine of every query with every passage: [n, m], in float32 or wider, even under autocast."""
    with torch.autocast(queries_ND.device.type, enabled=False):
        return _unit(queries_ND) @ _unit(passages_MD).T


def cosine_pairs(left_PD: Tensor, right_PD: Tensor) -> Tensor:
    """Cosine of each left vector with the right vector of the same row: [p], in float32 or wider."""
    return (_unit(left_PD) * _unit(right_PD)).sum(dim=1)


def info_nce(
    queries_ND: Tensor,
    passages_MD: Tensor,
    positive_index_N: Tensor,
    temperature: float | Tensor,
    mask_NM: Tensor | None = None,
) -> Tensor:
    """Mean over queries of -log softmax of the positive among the passages (paper eq. 1 and 3).

    `positive_index_N` (int64) is the column of each query's positive. `mask_NM` (bool) is True for passages that are
    not negatives of the query; the positive always counts, even if masked. Without queries the loss is 0, still
    attached to the graph.
    """
    logits_NM = cosine_matrix(queries_ND, passages_MD) / temperature
    if mask_NM is not None:
        others_NM = mask_NM.scatter(1, positive_index_N[:, None], False)
        logits_NM = logits_NM.masked_fill(others_NM, float("-inf"))
    return cross_entropy(logits_NM, positive_index_N, reduction="sum") / max(len(logits_NM), 1)


def cosent(scores_P: Tensor, labels_P: Tensor, temperature: float) -> Tensor:
    """CoSENT: log(1 + Σ over label_i > label_j of exp((score_j - score_i) / τ)) (paper eq. 2).

    After sorting by label, the scores that score i must exceed form a prefix, so one cumulative logsumexp contains
    every inner sum: O(p log p) instead of p² terms. Equal labels are not compared. With nothing to compare (no scores,
    one, or all of one label) the loss is 0 with zero gradients. Pass labels on the CPU, or the host waits for the GPU.
    """
    labels_P, order_P = torch.sort(labels_P)
    lower_P = torch.searchsorted(labels_P, labels_P)  # how many pairs have a strictly smaller label
    above = (lower_P > 0).nonzero()[:, 0]
    order_P, last_below, above = (to_device(each, scores_P.device) for each in (order_P, lower_P[above] - 1, above))
    scaled_P = scores_P.to(_at_least_float32(scores_P))[order_P] / temperature
    inner = torch.logcumsumexp(scaled_P, dim=0)[last_below]
    return torch.logsumexp(torch.cat([scaled_P.new_zeros(1), inner - scaled_P[above]]), dim=0)


def matryoshka(loss: Callable[..., Tensor], dims: Sequence[int]) -> Callable[..., Tensor]:
    """Make `loss` a mean over `dims`, each time on embeddings truncated to that width (MRL, Kusupati et al. 2022).

    The returned function takes the arguments of `loss`, which must all be embeddings [*, D] (arXiv 2205.13147). The
    losses here use cosines, so truncated embeddings are normalised again. Raises ValueError if `dims` is empty or has a
    value outside 1…D.
    """
    if not dims or min(dims) < 1:
        raise ValueError(f"matryoshka dims must be one or more positive numbers, not {list(dims)}")

    def mean_over_dims(*embeddings: Tensor) -> Tensor:
        width = min(each.shape[1] for each in embeddings)
        if max(dims) > width:
            raise ValueError(f"matryoshka dims {list(dims)} exceed the embeddings' width {width}")
        return torch.stack([loss(*(each[:, :dim] for each in embeddings)) for dim in dims]).mean()

    return mean_over_dims


def _unit(vectors: Tensor) -> Tensor:
    return normalize(vectors.to(_at_least_float32(vectors)), dim=1)


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
