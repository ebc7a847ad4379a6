"""Cross-GPU Batch Balance Loss (CBB, paper §2.3): the batch of a step, its division among ranks, and its loss.

All ranks build the same `Batch` from the same data. Each rank encodes its share of the distinct texts, and only
embeddings are exchanged:

    own, restore = partition_texts(rank, world_size, lengths, sts_only_mask(batch, partition))
    embeddings_TD = all_gather_with_grad(encode([batch.texts[row] for row in own]))[restore]
    losses = cbb_loss(embeddings_TD, batch, temperature=0.02, beta=0.8)

No text is encoded twice, any number of ranks works, and the parameter update equals that of a single process, however
the texts are divided. `cbb_partition` therefore affects the speed, not the result (apart from rounding and dropout).

Shapes: T distinct texts, N queries, K negatives per query, M passages (the N positives, then all negatives without
padding), P sentence pairs, D the width of an embedding, d the width after truncation to a matryoshka dim.
"""
# ruff: noqa: N803, N806 (the letters after _ are shapes: queries_ND is [N, D])

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ...schemas.prompts import Prompts
from ...schemas.training_settings import CBBPartition
from ..transfer import to_device
from .losses import cosent, cosine_matrix, cosine_pairs, info_nce, matryoshka
from .masks import Ceiling, mask_false_negatives, mask_known
from .terms import LossTerm

Rows = npt.NDArray[np.int64]
Clusters = int | Sequence[int]
"""The cluster of a text (-1 for none), or its clusters."""
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Batch:
    """The texts of one step and their roles. The `…_rows` are positions in `texts`; all tensors are on the CPU.

    Texts of the same group are never negatives of each other. A query is in the group of its positive.
    """

    texts: list[str]  # T distinct texts
    groups: Tensor  # [T] int64
    query_rows: Tensor  # [N] int64
    positive_rows: Tensor  # [N] int64
    negative_rows: Tensor  # [N, K] int64, padded with -1 if a query has fewer than K
    left_rows: Tensor  # [P] int64
    right_rows: Tensor  # [P] int64
    labels: Tensor  # [P] float32
    query_only: Tensor  # [N] bool: neither is the query compared with other queries' texts, nor they with its texts
    teacher_scores: Tensor  # [N, 1 + K] float32: a judge's scores of the positive and the negatives, NaN if unknown


@dataclass(frozen=True)
class Losses:
    """The loss of a batch: `total`, to call backward on, its unweighted terms, and cosines at full width, detached."""

    total: Tensor
    terms: dict[str, Tensor]  # by name: retrieval, sts, and the recipe's extra terms
    positive_scores: Tensor  # [N]
    negative_scores: Tensor  # [N, K], padded with NaN if a query has fewer than K
    mean_negatives: Tensor | float = 0.0  # mean number of negatives in a query's denominator
    mean_false_negatives: Tensor | None = None  # mean number of those that the ceiling leaves out, if there is one
    single_label: bool = False  # all sentence pairs have the same label, so CoSENT has nothing to compare


def build_batch(
    queries: Sequence[str] = (),
    positives: Sequence[str] = (),
    negatives: Sequence[Sequence[str]] = (),
    *,
    positive_clusters: Sequence[Clusters] = (),
    negative_clusters: Sequence[Sequence[Clusters]] = (),
    left: Sequence[str] = (),
    right: Sequence[str] = (),
    labels: Sequence[float] = (),
    prompts: Prompts | None = None,
    query_sources: Sequence[str] = (),
    negative_sources: Sequence[Sequence[str]] = (),
    sentence_sources: Sequence[str] = (),
    query_only: Sequence[bool] = (),
    teacher_scores: Sequence[Sequence[float]] = (),
) -> Batch:
    """Build a batch of N queries, each with a positive and up to K negatives, and P labelled sentence pairs.

    `negatives` may be omitted (pre-training). `positive_clusters` and `negative_clusters` give the cluster of each text
    (-1 for none), or its clusters. Texts are grouped by following two kinds of links: from a query to its positive, and
    between texts of one cluster. So if a query occurs twice, its second positive is not a negative of the first
    occurrence, and a near-duplicate of a query's positive is not its negative.

    The batch's texts begin with the `prompts` of their roles and, if sources are given, of their sources; a positive is
    of its query's source.

    Queries marked in `query_only` have negatives of their own alone, as if each were a batch by itself.
    `teacher_scores` has a judge's scores for each query: its positive first, then its negatives; NaN if not judged.

    Raises ValueError if lengths do not match.
    """
    negatives = negatives or [()] * len(queries)
    positive_clusters = positive_clusters or [-1] * len(queries)
    negative_clusters = negative_clusters or [[-1] * len(each) for each in negatives]
    counts = np.array([len(each) for each in negatives], np.int64)
    if not len(queries) == len(positives) == len(negatives) == len(positive_clusters):
        raise ValueError("queries, positives, negatives and positive_clusters differ in length")
    if counts.tolist() != [len(each) for each in negative_clusters]:
        raise ValueError("negatives and negative_clusters differ in length")
    if len(query_only) not in (0, len(queries)):
        raise ValueError("queries and query_only differ in length")
    if teacher_scores and [len(each) for each in teacher_scores] != [1 + count for count in counts.tolist()]:
        raise ValueError("teacher_scores and negatives differ in length: expected the positive's score before theirs")
    if not len(left) == len(right) == len(labels):
        raise ValueError("left, right and labels differ in length")

    parts = [queries, positives, list(chain.from_iterable(negatives)), left, right]
    prompts = prompts or Prompts()
    of_queries = [prompts.of(source) for source in query_sources] or [prompts] * len(queries)
    of_negatives = [prompts.of(source) for each in negative_sources for source in each] or [prompts] * len(parts[2])
    of_sentences = [prompts.of(source) for source in sentence_sources] or [prompts] * len(left)
    before = [own.query for own in of_queries]
    before += [own.passage for own in [*of_queries, *of_negatives]]
    before += [own.sentence for own in of_sentences * 2]
    bare = list(chain.from_iterable(parts))
    bare_texts, bare_rows = _number(bare)
    texts, rows = _number([prompt + text for prompt, text in zip(before, bare, strict=True)])
    splits = np.cumsum([len(part) for part in parts])[:-1]
    query_rows, positive_rows, flat_negative_rows, left_rows, right_rows = np.split(rows, splits)
    present = np.arange(counts.max(initial=0)) < counts[:, None]
    negative_rows = np.full(present.shape, -1)
    negative_rows[present] = flat_negative_rows
    scores = np.full((len(queries), 1 + present.shape[1]), np.nan, np.float32)
    if teacher_scores:
        scores[:, 0], scores[:, 1:][present] = (
            [each[0] for each in teacher_scores],
            [score for each in teacher_scores for score in each[1:]],
        )
    # Group the texts without their prompts, so that a query is in one group with a passage that has the same text.
    queries_bare, positives_bare, negatives_bare, *_ = np.split(bare_rows, splits)
    bare_groups = _groups(
        len(bare_texts),
        positive_of=(queries_bare, positives_bare),
        clustered_rows=np.concatenate([positives_bare, negatives_bare]),
        clusters=[*positive_clusters, *chain.from_iterable(negative_clusters)],
    )
    groups = np.empty(len(texts), np.int64)
    groups[rows] = bare_groups[bare_rows]
    return Batch(
        texts=texts,
        groups=torch.from_numpy(groups),
        query_rows=torch.from_numpy(query_rows),
        positive_rows=torch.from_numpy(positive_rows),
        negative_rows=torch.from_numpy(negative_rows),
        left_rows=torch.from_numpy(left_rows),
        right_rows=torch.from_numpy(right_rows),
        labels=torch.tensor(labels, dtype=torch.float32),
        query_only=torch.tensor(query_only or [False] * len(queries), dtype=torch.bool),
        teacher_scores=torch.from_numpy(scores),
    )


def sts_only_mask(batch: Batch, partition: CBBPartition) -> Mask | None:
    """With `per_task`, return a mask [T] of the texts that only STS uses, which get ranks of their own.

    With `mixed`, return None.
    """
    if partition == "mixed":
        return None
    mask_T = np.ones(len(batch.texts), np.bool_)
    for rows in (batch.query_rows, batch.positive_rows, batch.negative_rows[batch.negative_rows >= 0]):
        mask_T[rows.numpy()] = False
    return mask_T


def partition_texts(
    rank: int, world_size: int, lengths: npt.ArrayLike, sts_only: Mask | None = None
) -> tuple[Rows, Rows]:
    """Divide the texts of a batch among the ranks. All ranks compute the same division.

    Returns `own`, the rows that this rank encodes, longest first, and `restore` [T], which puts the gathered embeddings
    back in the order of the texts: `gathered[restore]`. Texts are assigned in snake order (first rank to last, then
    back), longest first. Without `sts_only`, the number of texts therefore differs by at most one between two ranks,
    and the summed length by at most the longest text. `lengths` [T] may be in any unit.

    With the mask `sts_only` [T], the texts in the mask go to the last ranks and the others to the first ranks, in snake
    order within each of the two. The number of last ranks is proportional to the masked texts' share of the summed
    length, rounded, at least one and not all: with five GPUs and any share below 30%, the paper's 4 + 1. With a single
    rank, or if all texts or no texts are in the mask, the mask is ignored.
    """
    parts = partition_rows(world_size, lengths, sts_only)
    return parts[rank], np.argsort(np.concatenate(parts))


def partition_rows(world_size: int, lengths: npt.ArrayLike, sts_only: Mask | None = None) -> list[Rows]:
    """Return the rows that each rank encodes, divided as described in `partition_texts`."""
    lengths = np.asarray(lengths, np.int64)
    rows = np.arange(len(lengths))
    if sts_only is None or world_size == 1 or sts_only.all() or not sts_only.any():
        return _in_snake_order(rows, lengths, world_size)
    sts_share = lengths[sts_only].sum() / max(lengths.sum(), 1)
    sts_ranks = min(max(round(world_size * sts_share), 1), world_size - 1)
    retrieval_parts = _in_snake_order(rows[~sts_only], lengths, world_size - sts_ranks)
    return retrieval_parts + _in_snake_order(rows[sts_only], lengths, sts_ranks)


def cbb_loss(
    embeddings_TD: Tensor,
    batch: Batch,
    *,
    temperature: float | Tensor,
    beta: float = 0.8,
    sts_temperature: float = 0.05,
    matryoshka_dims: Sequence[int] = (),
    in_batch_positives: bool = False,
    query_only_negatives: bool = False,
    ceiling: Ceiling | None = None,
    terms: Mapping[str, tuple[float, LossTerm]] = {},
) -> Losses:
    """InfoNCE over the negatives of the whole batch + β · CoSENT (paper eq. 3) + extra weighted terms.

    The denominator of a query contains its own positive and the negatives of all queries in the batch; a negative that
    was drawn twice counts twice. `in_batch_positives` adds the positives of the other queries; `query_only_negatives`
    leaves out all texts of other queries, as if every query were marked in the batch's `query_only`. `ceiling` leaves
    out those whose cosine with the query, at full width, is above what it returns for the query's positive. Apart from
    the positive, texts of the query's own group (see `Batch`) are always left out.

    Retrieval or STS may be empty; its loss is then 0. Every term is the mean over `matryoshka_dims` (default: the full
    width only). A learnt `temperature` is a scalar tensor. `terms` maps names to weights and functions (see terms.py).

    Nothing here synchronises with the device: whatever determines shapes is computed on the CPU, where the batch is.
    """
    device = embeddings_TD.device
    dims = list(matryoshka_dims) or [embeddings_TD.shape[1]]
    present_NK = batch.negative_rows >= 0
    columns_M = torch.cat([batch.positive_rows, batch.negative_rows[present_NK]])
    query_N = torch.arange(len(batch.query_rows))  # also the column of each query's own positive
    negative_query, negative_slot = present_NK.nonzero(as_tuple=True)  # [M - N] each: which query, which of its K
    owner_M = torch.cat([query_N, negative_query])
    excluded_NM = to_device(
        mask_known(batch.groups[columns_M], owner_M, batch.query_only, in_batch_positives, query_only_negatives), device
    )
    positive_index_N = to_device(query_N, device)
    queries_ND, passages_MD, left_PD, right_PD = (
        embeddings_TD[to_device(rows, device)]
        for rows in (batch.query_rows, columns_M, batch.left_rows, batch.right_rows)
    )
    with torch.no_grad():
        scores_NM = cosine_matrix(queries_ND, passages_MD)
    false_NM = None
    if ceiling is not None:
        false_NM = mask_false_negatives(scores_NM, to_device(owner_M, device), ceiling) & ~excluded_NM
        excluded_NM = excluded_NM | false_NM

    def retrieval_loss(queries_Nd: Tensor, passages_Md: Tensor) -> Tensor:
        return info_nce(queries_Nd, passages_Md, positive_index_N, temperature, excluded_NM)

    def sts_loss(left_Pd: Tensor, right_Pd: Tensor) -> Tensor:
        return cosent(cosine_pairs(left_Pd, right_Pd), batch.labels, sts_temperature)

    values = {
        "retrieval": matryoshka(retrieval_loss, dims)(queries_ND, passages_MD),
        "sts": matryoshka(sts_loss, dims)(left_PD, right_PD),
    }
    total = values["retrieval"] + beta * values["sts"]
    total, values = add_terms(total, values, terms, embeddings_TD, batch, dims)
    negative_scores = scores_NM.new_full(present_NK.shape, float("nan"))
    rows = to_device(negative_query, device)
    columns = len(query_N) + torch.arange(len(negative_query), device=device)
    negative_scores[rows, to_device(negative_slot, device)] = scores_NM[rows, columns]
    labels = batch.labels.numpy()
    return Losses(
        total=total,
        terms=values,
        positive_scores=scores_NM[positive_index_N, positive_index_N],
        negative_scores=negative_scores,
        mean_negatives=_mean_count(~excluded_NM),
        mean_false_negatives=None if false_NM is None else _mean_count(false_NM),
        single_label=len(labels) > 0 and bool((labels == labels[0]).all()),
    )


def pretrain_loss(
    embeddings_TD: Tensor,
    batch: Batch,
    *,
    temperature: float | Tensor,
    matryoshka_dims: Sequence[int] = (),
    symmetric: bool = False,
    ceiling: Ceiling | None = None,
    terms: Mapping[str, tuple[float, LossTerm]] = {},
) -> Losses:
    """InfoNCE with in-batch negatives (paper eq. 1): the negatives of a query are the other pairs' positives.

    `batch` must hold the pairs of all ranks, with their clusters, and no sentence pairs; the STS loss is then 0. Pairs
    of one cluster, or with a text in common, are not negatives of each other. With `symmetric`, the loss is the mean of
    both directions: query to positive among all positives, and positive to query among all queries. `ceiling` is
    as in `cbb_loss`. Negatives are counted in the first direction.
    """
    one_way = partial(
        cbb_loss, temperature=temperature, matryoshka_dims=matryoshka_dims, in_batch_positives=True, ceiling=ceiling
    )
    losses = one_way(embeddings_TD, batch)
    if symmetric:
        other = one_way(embeddings_TD, replace(batch, query_rows=batch.positive_rows, positive_rows=batch.query_rows))
        mean = (losses.total + other.total) / 2
        losses = replace(losses, total=mean, terms=losses.terms | {"retrieval": mean})
    dims = list(matryoshka_dims) or [embeddings_TD.shape[1]]
    total, values = add_terms(losses.total, losses.terms, terms, embeddings_TD, batch, dims)
    return replace(losses, total=total, terms=values)


def add_terms(
    total: Tensor,
    values: dict[str, Tensor],
    terms: Mapping[str, tuple[float, LossTerm]],
    embeddings_TD: Tensor,
    batch: Batch,
    dims: Sequence[int],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add extra `terms` to a loss: return the new total, and `values` with an entry for each term.

    The total gets the weighted terms, the entries are unweighted. Each term is the mean over `dims`.
    """
    for name, (weight, term) in terms.items():
        value = matryoshka(lambda embeddings_Td, term=term: term(embeddings_Td, batch), dims)(embeddings_TD)
        total, values = total + weight * value, values | {name: value}
    return total, values


def _mean_count(marked_NM: Tensor) -> Tensor:
    """Return how many passages are marked per query, on average; 0 without queries."""
    return marked_NM.sum() / max(len(marked_NM), 1)


def _in_snake_order(rows: Rows, lengths: Rows, parts: int) -> list[Rows]:
    """Divide `rows` into `parts` parts in snake order (first to last part, last to first, …), longest first."""
    order = rows[np.argsort(-lengths[rows], kind="stable")]
    position = np.arange(len(order)) % (2 * parts)
    part = np.minimum(position, 2 * parts - 1 - position)
    return [order[part == number] for number in range(parts)]


def _number(texts: list[str]) -> tuple[list[str], Rows]:
    """Return the distinct texts, in the order in which they come, and the position of each text among them."""
    encoded = pa.array(texts, pa.string()).dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def _groups(texts: int, positive_of: tuple[Rows, Rows], clustered_rows: Rows, clusters: Sequence[Clusters]) -> Rows:
    """Return the connected component of each text, [T], under the links "positive of" and "in the same cluster"."""
    lists = [[each] if isinstance(each, int) else each for each in clusters]
    flat = np.fromiter(chain.from_iterable(lists), np.int64)
    rows, flat = np.repeat(clustered_rows, [len(each) for each in lists])[flat >= 0], flat[flat >= 0]
    names, members = np.unique(flat, return_inverse=True)
    nodes = texts + len(names)  # a cluster is a node too, linked to each of its texts
    start = np.concatenate([positive_of[0], rows])
    end = np.concatenate([positive_of[1], texts + members])
    edges = coo_array((np.ones(len(start), np.bool_), (start, end)), shape=(nodes, nodes))
    _, components = connected_components(edges, directed=False)
    return components[:texts].astype(np.int64)
