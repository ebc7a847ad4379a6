"""The best passages of every query, under rules: exact, or by FAISS above a million passages.

Both sides are read a block at a time; each query keeps its best passages so far, so that memory does not grow with the
number of vectors. Rules drop a passage before it is ranked: it takes no other one's place and none is put for it.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import faiss
import numpy as np
import numpy.typing as npt
from numba import prange

from ..encoder.onednn import inner_products
from ..text.kernels import inner_kernel, parallel_kernel

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Rows = Callable[[Integers], Floats]
"""From n places to their vectors, float32 [n, D]."""
Progress = Callable[[int, int], None]
"""Called with the blocks searched so far, and how many there are."""

FLAT_LIMIT = 1_000_000
"""Chosen here: up to this many passages every one is compared; above, an index holds no more of them at a time."""
QUERIES, PASSAGES, TOGETHER = 16_384, 4_096, 256
"""Chosen here: vectors in memory of either side; queries multiplied at a time: 4 MB of scores stay in the cache."""
PAIRS = 16_384
"""Chosen here: queries with a positive each whose vectors are in memory at a time."""
TRAINING = 262_144
"""Chosen here: passages that an index is trained on, 65 a list: FAISS asks for 39 or more and takes at most 256."""
APPROXIMATE_DEPTH = 10
"""Chosen here: how many times as many neighbours as are wanted an index is asked for, before any are dropped."""
RECALL, JUDGED, SAMPLE = 0.97, 100, 256
"""Chosen here: the share of the JUDGED best passages of SAMPLE queries that an IVF must find; it searches as many lists
as that takes."""
GPU_DEPTH = 2_048
"""FAISS on a GPU finds no more neighbours at a time."""
NONE = np.iinfo(np.int64).min
"""The key of no passage, less than any other."""


class Rules(NamedTuple):
    """What a query may not have: a passage of a cluster of its own, or one whose score is not below its ceiling.

    ceiling: float32 [queries]. Query i's own clusters are `own[own_starts[i] : own_starts[i + 1]]`, those of a passage
    are so in `members`; starts are one longer than what they count.
    """

    ceiling: Floats
    own_starts: Integers
    own: Integers
    member_starts: Integers
    members: Integers


class Best(NamedTuple):
    """The best passages of each query, best first, equal ones by number: ids and scores, both [queries, top_k].

    -1 and -inf where there are no more.
    """

    ids: Integers
    scores: Floats


def search(
    queries: Rows, passages: Rows, rules: Rules, top_k: int, index: str | None, progress: Progress = lambda *_: None
) -> Best:
    """The passages with the greatest inner products that the rules allow each query.

    Every passage is compared, so that a query whose neighbours are all dropped goes as far down as it must; above
    FLAT_LIMIT, or where `index` is a FAISS factory string, only the nearest ones that the index finds.
    """
    count, total = len(rules.ceiling), len(rules.member_starts) - 1
    best = np.full((count, top_k), NONE)  # a heap of keys for each query
    if index is None and total <= FLAT_LIMIT:
        found = _compared(queries, passages, count, total, progress)
    else:
        factory, depth = index or default_index(total), APPROXIMATE_DEPTH * top_k
        found = _nearest(queries, passages, count, total, depth, factory, progress)
    for first, ids, scores in found:
        _offer(first, ids, scores, rules, best)
    return _ranked(best)


def pair_cosines(queries: Rows, owner: Integers, passages: Rows, passage: Integers) -> Floats:
    """The cosine of query `owner[i]` and passage `passage[i]`, float32 [pairs]; both sides are unit vectors."""
    scores = np.empty(len(owner), np.float32)
    for start in range(0, len(owner), PAIRS):
        pairs = slice(start, start + PAIRS)
        np.einsum("nd,nd->n", queries(owner[pairs]), passages(passage[pairs]), out=scores[pairs])
    return scores


def default_index(passages: int) -> str:
    """What so many passages are searched with: every one is compared, or IVF of 4√n lists for a shard of n."""
    lists = int(4 * (passages / _shards(passages)) ** 0.5)
    return "Flat" if passages <= FLAT_LIMIT else f"IVF{lists},Flat"


def _shards(passages: int) -> int:
    return max(1, -(-passages // FLAT_LIMIT))


Found = Iterator[tuple[int, Integers, Floats]]
"""Blocks: the number of the first query, passage ids [1 or n, m] (-1 for none) and their scores [n, m]."""


def _compared(queries: Rows, passages: Rows, count: int, total: int, progress: Progress) -> Found:
    """All scores, in blocks."""
    blocks = max(1, -(-count // QUERIES) * -(-total // PASSAGES))
    done = 0
    for asked in _blocks(0, count, QUERIES):
        vectors = queries(asked)
        for searched in _blocks(0, total, PASSAGES):
            products = inner_products(passages(searched))
            for start in range(0, len(asked), TOGETHER):
                yield start + int(asked[0]), searched[None], products(vectors[start : start + TOGETHER])
            done += 1
            progress(done, blocks)


def _nearest(
    queries: Rows, passages: Rows, count: int, total: int, depth: int, factory: str, progress: Progress
) -> Found:
    """The `depth` nearest passages of each query that an index of each shard of the passages finds."""
    shards = _shards(total)
    edges = np.arange(shards + 1) * total // shards
    blocks = max(1, -(-count // PASSAGES) * shards)
    done = 0
    sample = queries(np.unique(np.linspace(0, count - 1, SAMPLE, dtype=np.int64))[:count])
    for start, end in pairwise(edges.tolist()):
        index = _index(passages, start, end, factory)
        _choose_probes(index, sample, passages, start, end)
        for asked in _blocks(0, count, PASSAGES):
            wanted = min(depth, end - start, GPU_DEPTH if faiss.get_num_gpus() else depth)
            scores, ids = index.search(queries(asked), wanted)
            yield int(asked[0]), np.where(ids < 0, -1, ids + start), scores
            done += 1
            progress(done, blocks)


def _index(passages: Rows, start: int, end: int, factory: str) -> faiss.Index:
    """A FAISS index of a shard by inner product; on all GPUs where it has any, of an IVF's lists 1/16 are searched."""
    trained = min(TRAINING, end - start)
    sample = passages(start + np.arange(trained) * (end - start) // trained)
    index = faiss.index_factory(sample.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    if faiss.get_num_gpus():
        if (inverted := faiss.try_extract_index_ivf(index)) is not None:
            inverted.nprobe = max(1, inverted.nlist // 16)
        index = faiss.index_cpu_to_all_gpus(index)
    index.train(sample)
    for added in _blocks(start, end, QUERIES):
        index.add(passages(added))
    return index


def _choose_probes(index: faiss.Index, sample: Floats, passages: Rows, start: int, end: int) -> None:
    """Let an IVF search 1/64 of its lists, then twice as many, until it finds enough of what there is to be found."""
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is None or not len(sample):  # another kind, or on a GPU
        return
    nothing = np.zeros(0, np.int64)
    starts = np.zeros(max(end, len(sample)) + 1, np.int64)
    rules = Rules(np.full(len(sample), np.inf, np.float32), starts, nothing, starts, nothing)
    best = np.full((len(sample), min(JUDGED, end - start)), NONE)
    for searched in _blocks(start, end, PASSAGES):
        _offer(0, searched[None], inner_products(passages(searched))(sample), rules, best)
    expected = _ranked(best).ids - start
    for shift in range(6, -1, -1):
        inverted.nprobe = max(1, inverted.nlist >> shift)
        found = index.search(sample, expected.shape[1])[1]
        shared = [len(np.intersect1d(*each)) for each in zip(found, expected, strict=True)]
        if np.mean(shared) >= RECALL * expected.shape[1]:
            break


def _blocks(start: int, end: int, size: int) -> Iterator[Integers]:
    return (np.arange(first, min(first + size, end)) for first in range(start, end, size))


@inner_kernel
def _intersects(left: Integers, right: Integers) -> bool:
    """Tell whether two short lists have a value in common."""
    for one in left:
        for other in right:
            if one == other:
                return True
    return False


@inner_kernel
def _pack_key(score: float, passage: int) -> np.int64:
    """Pack a passage into a number that is greater for a greater score or, if the scores are equal, for a lesser id.

    The bits of float32, as int32, are in order once all but the sign are turned in negative ones.
    """
    bits = np.int64(np.float32(score).view(np.int32))
    return (bits ^ (bits >> 31 & 0x7FFFFFFF)) << 32 | 0xFFFFFFFF - passage


@inner_kernel
def _unpack_score(key: np.int64) -> np.float32:
    """Unpack the score of a key."""
    ordered = key >> 32
    return np.int32(ordered ^ (ordered >> 31 & 0x7FFFFFFF)).view(np.float32)


@inner_kernel
def _replace_root(heap: Integers, key: np.int64) -> None:
    """Replace the least key of a heap, its root."""
    at, child, last = 0, 1, len(heap) - 1
    while child <= last:
        child += child < last and heap[child + 1] < heap[child]
        if key <= heap[child]:
            break
        heap[at] = heap[child]
        at, child = child, 2 * child + 1
    heap[at] = key


@parallel_kernel
def _offer(first: int, ids: Integers, scores: Floats, rules: Rules, best: Integers) -> None:
    """Let each query of a block keep the best of what it had and of these passages, those that its rules allow.

    Row i is query `first + i`. The order in which passages are offered makes no difference.
    """
    for row in prange(len(scores)):
        query = first + row
        heap, below = best[query], rules.ceiling[query]
        own = rules.own[rules.own_starts[query] : rules.own_starts[query + 1]]
        floor = np.float32(-np.inf) if heap[0] == NONE else _unpack_score(heap[0])
        for start in range(0, scores.shape[1], 64):
            stretch = scores[row, start : start + 64]
            promising = np.int32(0)  # counted without a branch, as a vector: most stretches have none
            for score in stretch:
                promising += np.int32(score >= floor) & np.int32(score < below)
            if promising == 0:
                continue
            for place, score in enumerate(stretch, start):
                if not floor <= score < below:
                    continue
                passage = ids[row % len(ids), place]
                key = _pack_key(score, passage)
                if passage < 0 or key <= heap[0]:
                    continue
                if _intersects(own, rules.members[rules.member_starts[passage] : rules.member_starts[passage + 1]]):
                    continue
                _replace_root(heap, key)
                if heap[0] != NONE:
                    floor = _unpack_score(heap[0])


def _ranked(best: Integers) -> Best:
    """Heaps of keys as numbers and scores, best first."""
    best.sort(axis=1)
    keys = best[:, ::-1]
    there = keys != NONE
    ordered = (keys >> 32).astype(np.int32)
    scores = (ordered ^ (ordered >> 31 & 0x7FFFFFFF)).view(np.float32)
    return Best(np.where(there, 0xFFFFFFFF - (keys & 0xFFFFFFFF), -1), np.where(there, scores, np.float32(-np.inf)))
