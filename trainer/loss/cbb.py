"""Cross-GPU batch balance (paper §2.3): the batch of one update, who encodes what of it, and its loss.

All ranks build the same `Update` from the same data. Each encodes its slice of the distinct texts, and only
embeddings travel:

    own, restore = slice_for(rank, world_size, lengths, texts_apart(update, layout))
    embeddings_TD = gather(encode([update.texts[row] for row in own]))[restore]
    losses = update_loss(embeddings_TD, update, settings)

No text is encoded twice, any number of ranks works, and the update of the parameters is that of one process,
whichever rank encodes what. So a layout is no more than another deal of the same texts.
Shapes: T distinct texts, n queries, k negatives of each, p pairs of sentences, D the width of an embedding.
"""
# ruff: noqa: N803, N806 (capital letters are shapes: queries_ND is [n, D])

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ...schemas.settings import FinetuneSettings, Layout, PretrainSettings
from .losses import cosent, cosine_matrix, cosine_pairs, info_nce, matryoshka

Rows = npt.NDArray[np.int64]
Marks = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Update:
    """The texts of one update and the parts they play. Rows point into `texts`; all tensors are on the CPU.

    Texts of one group are never negatives of each other; a query is in the group of its positive.
    """

    texts: list[str]  # T, distinct
    groups: Tensor  # [T] int64
    query_rows: Tensor  # [n] int64
    positive_rows: Tensor  # [n] int64
    negative_rows: Tensor  # [n, k] int64, -1 where a query has fewer than k
    left_rows: Tensor  # [p] int64
    right_rows: Tensor  # [p] int64
    labels: Tensor  # [p] float32


@dataclass(frozen=True)
class Losses:
    """What an update cost: scalars to differentiate (`total`) or log, and detached scores at full width."""

    total: Tensor
    retrieval: Tensor
    sts: Tensor
    positive_scores: Tensor  # [n]
    negative_scores: Tensor  # [n, k], NaN where a query has fewer than k
    negatives: float = 0.0  # how many a query has in its denominator, on average
    unordered: bool = False  # there are labelled pairs, but of one label: CoSENT has nothing to compare


def build_update(
    queries: Sequence[str] = (),
    positives: Sequence[str] = (),
    negatives: Sequence[Sequence[str]] = (),
    *,
    positive_clusters: Sequence[int] = (),
    negative_clusters: Sequence[Sequence[int]] = (),
    left: Sequence[str] = (),
    right: Sequence[str] = (),
    labels: Sequence[float] = (),
) -> Update:
    """Collect one update: n queries with a positive and up to k negatives each, and p labelled pairs.

    `negatives` may be left out (pre-training); clusters, where given, go along with the texts (-1 for none). Two
    texts end in one group when a query and its positive, or a shared cluster, connect them: so the second positive
    of a query that comes twice, or a near-duplicate of a positive, is nobody's false negative. Raises ValueError
    where two sequences that belong together differ in length.
    """
    negatives = negatives or [()] * len(queries)
    positive_clusters = positive_clusters or [-1] * len(queries)
    negative_clusters = negative_clusters or [[-1] * len(each) for each in negatives]
    counts = np.array([len(each) for each in negatives], np.int64)
    if not len(queries) == len(positives) == len(negatives) == len(positive_clusters):
        raise ValueError("queries, positives, negatives and clusters of positives differ in number")
    if counts.tolist() != [len(each) for each in negative_clusters]:
        raise ValueError("negatives and clusters of negatives differ in number")
    if not len(left) == len(right) == len(labels):
        raise ValueError("left sentences, right sentences and labels differ in number")

    parts = [queries, positives, list(chain.from_iterable(negatives)), left, right]
    encoded = pa.array(list(chain.from_iterable(parts)), pa.string()).dictionary_encode()
    rows = encoded.indices.to_numpy().astype(np.int64)
    ends = np.cumsum([len(part) for part in parts])
    query_rows, positive_rows, flat_negative_rows, left_rows, right_rows = np.split(rows, ends[:-1])
    present = np.arange(counts.max(initial=0)) < counts[:, None]
    negative_rows = np.full(present.shape, -1)
    negative_rows[present] = flat_negative_rows
    groups = _groups(
        len(encoded.dictionary),
        positive_of=(query_rows, positive_rows),
        clustered_rows=np.concatenate([positive_rows, flat_negative_rows]),
        clusters=np.array([*positive_clusters, *chain.from_iterable(negative_clusters)], np.int64),
    )
    return Update(
        texts=encoded.dictionary.to_pylist(),
        groups=torch.from_numpy(groups),
        query_rows=torch.from_numpy(query_rows),
        positive_rows=torch.from_numpy(positive_rows),
        negative_rows=torch.from_numpy(negative_rows),
        left_rows=torch.from_numpy(left_rows),
        right_rows=torch.from_numpy(right_rows),
        labels=torch.tensor(labels, dtype=torch.float32),
    )


def texts_apart(update: Update, layout: Layout) -> Marks | None:
    """Which texts are encoded by ranks of their own, [T]: for `paper`, those that only the STS task has."""
    if layout == "fused":
        return None
    marks = np.ones(len(update.texts), np.bool_)
    for rows in (update.query_rows, update.positive_rows, update.negative_rows[update.negative_rows >= 0]):
        marks[rows.numpy()] = False
    return marks


def slice_for(rank: int, world_size: int, lengths: npt.ArrayLike, apart: Marks | None = None) -> tuple[Rows, Rows]:
    """Which texts this rank encodes, and how to put the gathered rows back in order.

    Returns `own`, the rows of this rank, longest first, and `restore` [T]: `gathered[restore]` is in the order of
    the texts. Texts are dealt longest first, to and fro over the ranks, so counts differ by at most one and summed
    lengths by at most the longest text. `lengths` [T] in any unit; the deal is the same on every rank.

    Texts that `apart` [T] marks go to the last ranks and the others to the first, each dealt as above. The last ranks
    are as many as their share of the lengths asks for, rounded, but neither none nor all: the paper's 4 + 1 of five
    where STS has 10 to 30 % of the tokens. A single rank takes all texts, and where all texts or none are marked, all
    ranks share them.
    """
    lengths = np.asarray(lengths, np.int64)
    rows = np.arange(len(lengths))
    if apart is None or world_size == 1 or apart.all() or not apart.any():
        hands = _deal(rows, lengths, world_size)
    else:
        share = lengths[apart].sum() / max(lengths.sum(), 1)
        last = min(max(round(world_size * share), 1), world_size - 1)
        hands = _deal(rows[~apart], lengths, world_size - last) + _deal(rows[apart], lengths, last)
    return hands[rank], np.argsort(np.concatenate(hands))


def update_loss(
    embeddings_TD: Tensor, update: Update, settings: FinetuneSettings, temperature: Tensor | None = None
) -> Losses:
    """InfoNCE over the negatives of the whole update + β · CoSENT (paper eq. 3), both under matryoshka.

    The denominator of a query holds its own positive and every negative drawn for any query, each as often as it
    was drawn; with `settings.in_batch_positives` also the positives of the others, and with
    `settings.query_only_negatives` only the negatives drawn for this query. Texts of the query's own group are left
    out. Either task may be empty: its loss is then 0. No `settings.dimensions` means the full width only; a
    `temperature` that is learnt, a scalar, stands for `settings.temperature`.
    """
    device = embeddings_TD.device
    dims = settings.dimensions or [embeddings_TD.shape[1]]
    present_NK = update.negative_rows >= 0
    columns_M = torch.cat([update.positive_rows, update.negative_rows[present_NK]])
    own_N = torch.arange(len(update.query_rows))
    drawn_for = present_NK.nonzero()[:, 0]  # the query of each negative's column
    mask_NM = update.groups[columns_M] == update.groups[update.positive_rows][:, None]
    if not settings.in_batch_positives:
        mask_NM[:, : len(own_N)] = True
    if settings.query_only_negatives:
        mask_NM[:, len(own_N) :] |= drawn_for != own_N[:, None]

    scale = settings.temperature if temperature is None else temperature
    negatives = float((~mask_NM).sum(dim=1).float().mean()) if len(own_N) else 0.0
    index_N, mask_NM, labels_P = own_N.to(device), mask_NM.to(device), update.labels.to(device)
    queries_ND, passages_MD = embeddings_TD[update.query_rows.to(device)], embeddings_TD[columns_M.to(device)]
    left_PD, right_PD = (embeddings_TD[rows.to(device)] for rows in (update.left_rows, update.right_rows))

    def retrieval_loss(queries_Nd: Tensor, passages_Md: Tensor) -> Tensor:
        return info_nce(queries_Nd, passages_Md, index_N, scale, mask_NM)

    def sts_loss(left_Pd: Tensor, right_Pd: Tensor) -> Tensor:
        return cosent(cosine_pairs(left_Pd, right_Pd), labels_P, settings.sts_temperature)

    retrieval = matryoshka(retrieval_loss, dims)(queries_ND, passages_MD)
    sts = matryoshka(sts_loss, dims)(left_PD, right_PD)
    with torch.no_grad():
        scores_NM = cosine_matrix(queries_ND, passages_MD)
        negative_scores = scores_NM.new_full(present_NK.shape, float("nan"))
        drawn_columns = len(own_N) + torch.arange(len(drawn_for), device=device)
        negative_scores[present_NK.to(device)] = scores_NM[drawn_for.to(device), drawn_columns]
    return Losses(
        total=retrieval + settings.beta * sts,
        retrieval=retrieval,
        sts=sts,
        positive_scores=scores_NM[index_N, index_N],
        negative_scores=negative_scores,
        negatives=negatives,
        unordered=len(update.labels) > 0 and bool((update.labels == update.labels[0]).all()),
    )


def pretrain_loss(
    embeddings_TD: Tensor, update: Update, settings: PretrainSettings, temperature: Tensor | None = None
) -> Losses:
    """InfoNCE with in-batch negatives (paper eq. 1): an update whose negatives are the other pairs' positives.

    `update` is built from the pairs of all ranks with their clusters; pairs of one cluster or with a text in
    common are not negatives of each other. With `settings.symmetric` the loss is the mean of this one and of that
    with queries and positives exchanged: each positive looks for its query among all queries.
    """
    as_update = FinetuneSettings(
        temperature=settings.temperature, dimensions=settings.dimensions, in_batch_positives=True
    )
    losses = update_loss(embeddings_TD, update, as_update, temperature)
    if settings.symmetric:
        mirrored = replace(update, query_rows=update.positive_rows, positive_rows=update.query_rows)
        mean = (losses.total + update_loss(embeddings_TD, mirrored, as_update, temperature).total) / 2
        losses = replace(losses, total=mean, retrieval=mean)
    return losses


def _deal(rows: Rows, lengths: Rows, hands: int) -> list[Rows]:
    """`rows` to so many hands, longest first, to and fro."""
    order = rows[np.argsort(-lengths[rows], kind="stable")]
    turn = np.arange(len(order)) % (2 * hands)
    dealt_to = np.minimum(turn, 2 * hands - 1 - turn)
    return [order[dealt_to == each] for each in range(hands)]


def _groups(texts: int, positive_of: tuple[Rows, Rows], clustered_rows: Rows, clusters: Rows) -> Rows:
    """Connected components of the texts under "is a positive of" and "is in cluster": [T]."""
    known = clusters >= 0
    names, members = np.unique(clusters[known], return_inverse=True)
    nodes = texts + len(names)  # a cluster is a node of its own, joined to its texts
    start = np.concatenate([positive_of[0], clustered_rows[known]])
    end = np.concatenate([positive_of[1], texts + members])
    edges = coo_array((np.ones(len(start), np.bool_), (start, end)), shape=(nodes, nodes))
    _, components = connected_components(edges, directed=False)
    return components[:texts].astype(np.int64)
